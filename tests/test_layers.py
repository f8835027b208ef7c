"""The shape of the code: who may import whom, what start-up may load, how long a function or file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "misfm"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = [
    *("text", "errors", "registry", "volume", "settings", "seeding", "locks", "documents", "files"),
    *("terminal", "signals", "parallel", "memory", "batches", "ranks", "world", "lifeline"),
]
METHODS = ["models", "losses", "pretext"]
LAYERS = [
    *GROUND,
    "augment",
    "synthesis",
    "data",
    *METHODS,
    "weights",
    "training",
    "inference",
    "evaluation",
    "report",
    "viewer",
    "testing",
    "config",
    "resolve",
    "planning",
    "commands",
    "cli",
    "__main__",
]
"""The parts of the package; each may import those before it, with the exception that follows."""

ALLOWED = {part: set(LAYERS[:place]) for place, part in enumerate(LAYERS)}
ALLOWED.update(
    # Data and methods know nothing of each other: only what comes later puts them together.
    {part: ALLOWED[part] - {"data"} for part in METHODS},
    # Imported at start-up, before it is known what a command needs.
    terminal={"text"},
)

MAX_LINES, MAX_PARAMETERS, MAX_FILE = 60, 6, 400
LONGER_WITH_REASON = {
    "data/ingest.py:ingest": "each option of the command is a parameter",
    "cli/scans.py:ingest": "each option of the command is a parameter",
    "cli/training.py:pretrain": "each option of the command is a parameter",
    "cli/training.py:finetune": "each option of the command is a parameter",
    "cli/prediction.py:predict": "each option of the command is a parameter",
    "cli/prediction.py:evaluate": "each option of the command is a parameter",
    "cli/training.py:compare": "each option of the command is a parameter",
    "models/pctnet.py:build_pctnet": "each option of the network is a documented parameter",
    "models/primus.py:build_primus": "each option of the network is a documented parameter",
    "models/resenc.py:build_resenc": "each option of the network is a documented parameter",
    "training/loop.py:fit": "what a run is made of, each part documented; the settings are one of them",
    "training/loop.py:_fit": "likewise, in each rank",
}


def part_of(module):
    """``misfm.data.store`` -> ``data``; the package itself is its facade."""
    return [*module.split("."), "facade"][1]


def module_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["misfm", *(part for part in parts if part != "__init__")])


MODULES = {module_of(file) for file in FILES}


def imports_of(file):
    """Modules of misfm that a file imports anywhere, also within functions and for type checkers only."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "misfm")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            if node.module and node.module.split(".")[0] == "misfm":
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in MODULES else node.module


GRAPH = {module_of(file): set(imports_of(file)) for file in FILES}


def test_every_part_has_a_place_among_the_layers():
    assert {part_of(module) for module in MODULES} - {"facade"} == set(LAYERS)


@pytest.mark.parametrize("part", LAYERS)
def test_a_part_imports_only_what_lies_below_it(part):
    wrong = {
        f"{module} imports {used}"
        for module, imported in GRAPH.items()
        if part_of(module) == part
        for used in imported
        if part_of(used) not in {part, *ALLOWED[part]}
    }
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    # The facade names everything and is imported by none; a package's __init__ gathers its modules.
    graph = {module: used - {module, "misfm"} for module, used in GRAPH.items() if module != "misfm"}
    while leaves := {module for module, used in graph.items() if not used & graph.keys()}:
        graph = {module: used for module, used in graph.items() if module not in leaves}
    assert not graph


def test_nobody_imports_the_facade():
    assert not [module for module, used in GRAPH.items() if "misfm" in used]


def test_help_is_shown_without_loading_what_computes():
    script = (
        "import sys; sys.argv = ['misfm', '--help']\n"
        "import misfm.cli\n"
        "try: misfm.cli.main()\n"
        "finally: print(*sorted(name for name in sys.modules if '.' not in name), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "misfm" in loaded
    assert not {"torch", "numpy", "nibabel", "pydantic", "matplotlib", "scipy"} & set(loaded)
    assert "finetune" in done.stdout


def functions():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{file.relative_to(PACKAGE)}:{node.name}", node


def num_parameters(node):
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in arguments if argument.arg not in ("self", "cls")])


def num_lines(node):
    return node.end_lineno - node.lineno + 1


def test_functions_are_short_or_have_a_written_reason():
    long = {
        name
        for name, node in functions()
        if num_lines(node) > MAX_LINES or num_parameters(node) > MAX_PARAMETERS
    }
    assert long <= LONGER_WITH_REASON.keys()
    assert LONGER_WITH_REASON.keys() <= long, "these need no exception any more"


def test_files_are_short():
    long = {str(file): count for file in FILES if (count := len(file.read_text().splitlines())) > MAX_FILE}
    assert not long
