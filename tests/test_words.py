"""One word for one thing: the code is held to the glossary of CONTRIBUTING.md.

What the tables there have in `code` in the column "not" may occur neither in names that the code binds nor in
its docstrings, comments and messages.
"""

import ast
import io
import re
import tokenize
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "misfm"
FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}

EXCEPTIONS = {
    ("pretext/volume_fusion.py", "foreground"): "I_f of Volume Fusion",
    ("pretext/openmind_vf.py", "foreground"): "I_f of Volume Fusion",
    ("commands/demo_report.py", "foreground"): "I_f of Volume Fusion, in its pictures",
    ("report/pictures.py", "foreground"): "I_f of Volume Fusion, in its pictures",
    ("data/nifti_place.py", "pixdim"): "a field of NIfTI's header",
    ("cli/prediction.py", "seg"): "DICOM's name of a format",
    ("data/writers/rtstruct.py", "color"): "DICOM's name in the object",
    ("data/writers/dicom_seg.py", "seg"): "DICOM's name of the object",
    ("data/writers/seg_nrrd.py", "seg"): "3D Slicer's name of the file",
    ("data/writers/seg_nrrd.py", "color"): "3D Slicer's name in the file",
    ("report/pictures.py", "center"): "matplotlib's name of a place",
    ("weights/nnunet_plans.py", "foreground"): "nnU-Net's name of the intensities of labelled voxels",
    ("weights/nnssl_resenc.py", "stage"): "nnU-Net's name in its tensors",
    ("weights/containers.py", "epoch"): "nnssl's and nnU-Net's measure of training, in their checkpoints",
    ("weights/pymic_pctnet.py", "iteration"): "PyMIC's measure of training, in its checkpoints",
    ("weights/hub.py", "snapshot"): "the Hugging Face hub's name of a revision's files",
    **{
        ("data/layouts/words.py", word): "what people call their files"
        for word in ("seg", "lbl", "vol", "gt")
    },
    ("data/layouts/case_folders.py", "seg"): "BraTS's name of its label maps",
    ("data/dicom/series.py", "seg"): "DICOM's name of its objects that hold label maps",
    ("data/dicom/labels.py", "seg"): "DICOM's name of its objects that hold label maps",
    ("data/dicom/references.py", "seg"): "DICOM's name of its objects that hold label maps",
    ("data/layouts/dicom_study.py", "seg"): "DICOM's name of its objects that hold label maps",
}
"""(file, word) -> reason."""


def forbidden():
    """What the tables forbid, in their order."""
    glossary = (ROOT / "CONTRIBUTING.md").read_text().partition("## Glossary")[2]
    last_cells = re.findall(r"^\|.*\|([^|]*)\|$", glossary, re.MULTILINE)
    return [word for cell in last_cells for word in re.findall(r"`([^`]+)`", cell)]


WORDS = forbidden()


def bound_names(source):
    """Names of functions, classes, arguments, variables and attributes that a file defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def prose(source):
    """Docstrings, comments and messages of a file as one line."""
    texts = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            texts.append(re.sub(r"^[a-zA-Z]*(\"\"\"|'''|\"|')|(\"\"\"|'''|\"|')$", "", token.string))
        elif token.type == tokenize.COMMENT:
            texts.append(token.string.lstrip("# "))
    return " ".join(" ".join(texts).split())


def parts(name):
    """``optimGroups_of`` -> optim, groups, of."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_").split("_")


def occurs(word, source):
    """Where a forbidden word occurs: a name, or a piece of prose around it."""
    if "*" in word:
        return next((name for name in bound_names(source) if fnmatch(name.lower().strip("_"), word)), None)
    for name in bound_names(source):
        if {word, f"{word}s"} & {"_".join(parts(name)), *parts(name)}:
            return name
    found = re.search(rf".{{0,30}}(?<![\w.]){re.escape(word)}s?(?!\w).{{0,30}}", prose(source), re.IGNORECASE)
    return found[0] if found else None


def test_the_glossary_forbids_something():
    assert {"epoch", "n_*", "told by"} <= set(WORDS)
    assert len(WORDS) == len(set(WORDS))


def test_what_is_looked_for_is_found():
    assert occurs("epoch", "num_epochs = 3") == "num_epochs"
    assert occurs("epoch", "def f(x):\n    '''After each\n    Epoch.'''") == "After each Epoch."
    assert occurs("n_*", "n_cases = 3") == "n_cases"
    assert occurs("n_*", "f(n_cases=num_cases)") is None
    assert occurs("voxel size", 'raise ValueError("a voxel "\n    "size")') == "a voxel size"
    assert occurs("epoch", "x.current_epoch") is None
    assert occurs("settle", "settlement = 'a settlement'") is None


@pytest.mark.parametrize("file", FILES)
def test_a_file_uses_the_words_of_the_glossary(file):
    source = FILES[file].read_text()
    wrong = {
        word: found for word in WORDS if (file, word) not in EXCEPTIONS if (found := occurs(word, source))
    }
    assert not wrong


def test_every_exception_is_needed():
    idle = {
        (file, word)
        for file, word in EXCEPTIONS
        if file not in FILES or not occurs(word, FILES[file].read_text())
    }
    assert not idle
