"""The demo on the scans that ship with the package: what it writes and says, resumed and refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.commands import demo
from misfm.data.dataset import Dataset
from misfm.data.demo_scans import DATASET, UNLABELLED, copy_demo_scans
from misfm.errors import ConfigError
from misfm.evaluation.arms import Arm, compare_arms
from misfm.signals import Interrupted

NUM_KEPT = {"imagesTr": 2, "labelsTr": 2, "imagesTs": 2, "labelsTs": 2, UNLABELLED: 3}
"""Files kept of each folder: the demo of the tests has few scans, and few steps."""


@pytest.fixture(scope="module")
def all_scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    copy_demo_scans(folder)
    return folder


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """Folder and result of a demo of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "copy_demo_scans", copy_few)
        patch.setattr(demo, "PRETRAINING_STEPS", 2)
        patch.setattr(demo, "PRETRAINING_PATCH", (16, 16, 16))
        patch.setattr(demo, "FINETUNING_STEPS", 2)
        out = tmp_path_factory.mktemp("demo")
        yield out, demo.run_demo(out, seed=3)


def copy_few(out):
    copy_demo_scans(out)
    for folder in (*(out / DATASET).glob("*T[rs]"), out / UNLABELLED):
        for path in sorted(folder.glob("*.nii.gz"))[NUM_KEPT[folder.name] :]:
            path.unlink()
    labelled = sorted((out / DATASET / "labelsTr").iterdir())
    train, held_out = (path.name.removesuffix(".nii.gz") for path in labelled)
    (out / DATASET / "splits_final.json").write_text(json.dumps([{"train": [train], "val": [held_out]}]))
    description = out / DATASET / "dataset.json"
    content = json.loads(description.read_text())
    content.pop("subjects", None)  # names cases that are gone
    description.write_text(json.dumps(content))


def test_the_demo_compares_three_arms_and_says_so_last(short_demo):
    out, result = short_demo
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(result))
    scores = result["comparison"]["scores"]
    assert list(scores) == ["scratch", demo.BUILTIN, demo.FURTHER]
    assert len(result["comparison"]["cases"]) == 2
    assert result["pretraining"].keys() >= {"steps", "validation_pretext_dice", "validation_chance_dice"}
    *_, further, last = result["lines"]
    assert further.startswith(f"{demo.FURTHER} is ")
    assert last.startswith(f"{demo.BUILTIN} is ")
    for line, name in ((further, demo.FURTHER), (last, demo.BUILTIN)):
        difference = scores[name]["all"]["difference"]
        assert f"{difference['mean']:+.3f}, 95 % interval {difference['interval'][0]:+.3f}" in line


def test_arms_differ_in_their_weights_alone(short_demo):
    out, _ = short_demo
    settings = [demo.RunFolder(out / folder).read_settings() for folder in demo.ARMS.values()]
    weights = [each.pop("weights") for each in settings]
    assert weights[1:] == ["builtin", str(out / "pretrain")]
    assert settings[0] == settings[1] == settings[2]


def test_the_report_has_the_outcome_before_its_pictures(short_demo):
    out, _ = short_demo
    page = (out / "report.html").read_text()
    top, rest = page.split("<h2>Pictures</h2>")
    assert f"{demo.BUILTIN} 0." in top
    assert f"vs {demo.BUILTIN} 0." in top  # whatever Volume Fusion on top of it was worth
    for picture in ("Test scan hippocampus_", "Volume Fusion of held-out scans", "Fine-tuning: training"):
        assert picture in rest


def test_a_demo_goes_on_where_it_stopped_and_refuses_another_seed(short_demo, tmp_path, run_command):
    out, result = short_demo
    shutil.copytree(out, tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo" / demo.ARMS[demo.FURTHER])
    refused = run_command("demo", "--out", out, "--seed", 4)
    assert refused.status == 2
    assert "holds a demo with another seed" in refused.err
    again = demo.run_demo(out, seed=3)
    assert again["comparison"] == result["comparison"]


def test_no_subject_of_the_scans_is_in_two_parts(all_scans):
    dataset = Dataset.open(all_scans / DATASET)
    (split,) = json.loads((dataset.path / "splits_final.json").read_text())
    parts = {part: {subject(name) for name in names} for part, names in split.items()}
    for part, folder in (("test", dataset.path / "imagesTs"), ("unlabelled", all_scans / UNLABELLED)):
        names = [path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()]
        parts[part] = {subject(name) for name in names}
        assert len(parts[part]) == len(names) == 20
    assert len(set.union(*parts.values())) == sum(map(len, parts.values()))


def subject(name):
    return (int(name.removeprefix("hippocampus_")) + 1) // 2


def test_scans_are_integers_with_label_maps_on_their_grid(all_scans):
    images = sorted(all_scans.rglob("hippocampus_*.nii.gz"))
    assert sum(path.stat().st_size for path in images) < 3.2e6
    for path in images:
        assert nib.load(path).get_data_dtype() in (np.uint8, np.int16)
    for path in images:
        if path.parent.name.startswith("images"):
            labels = path.parents[1] / path.parent.name.replace("images", "labels")
            image, reference = nib.load(path), nib.load(labels / path.name.replace("_0000", ""))
            assert np.array_equal(image.affine, reference.affine)
            assert np.array_equal(np.unique(reference.dataobj), [0, 1, 2])
    licence = (all_scans / "LICENSE").read_text()
    assert licence.startswith("Attribution-ShareAlike 4.0 International")
    assert "Vanderbilt" in (all_scans / "ATTRIBUTION.md").read_text()


@pytest.mark.parametrize(("shift", "expected"), [(0.1, "ahead of"), (-0.1, "behind"), (0.0, "level with")])
def test_the_outcome_is_said_as_it_is(shift, expected):
    dice = [0.5, 0.6, 0.7, 0.65]
    base = Arm("scratch", cases={str(i): {"a": each} for i, each in enumerate(dice)})
    other = Arm("builtin", cases={str(i): {"a": each + shift} for i, each in enumerate(dice)})
    sentence = demo.outcome(compare_arms([base, other]), "builtin")
    assert sentence.startswith(f"builtin is {expected} scratch: Dice ")


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"holds something else, such as thesis.txt: choose another --out"):
        demo.run_demo(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_to_do_after_a_stop_is_what_the_demo_takes(run_command, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted("Stopped after step 3; the state is saved")

    monkeypatch.setattr(demo, "pretrain", stopped)
    done = run_command("demo", "--out", tmp_path / "demo")
    assert done.status == 1
    assert done.error == (
        "Error: Stopped after step 3; the state is saved: run the same command again to go on."
    )
