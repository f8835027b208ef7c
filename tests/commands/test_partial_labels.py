"""Cases in which some organs were not contoured: they teach nothing false, and no score counts them."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.finetune import finetune
from misfm.data.dataset import Dataset
from misfm.errors import DataError
from misfm.training.run import RunFolder

TRAIN, VAL = [f"phantom_tr_{i:03d}" for i in range(3)], "phantom_tr_003"


@pytest.fixture
def partial(dataset, tmp_path):
    """A dataset in which the first training and the validation case have contours of liver and aorta only."""
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    kept = ["liver", "aorta"]
    content = json.loads((folder / "dataset.json").read_text())
    values = [content["labels"][name] for name in kept]
    for case in (TRAIN[0], VAL):
        path = folder / "labelsTr" / f"{case}.nii.gz"
        label = nib.load(path)
        voxels = np.asarray(label.dataobj)
        nib.save(nib.Nifti1Image(voxels * np.isin(voxels, values), label.affine), path)
    content["annotated_labels"] = {TRAIN[0]: kept, VAL: kept}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "splits_final.json").write_text(json.dumps([{"train": TRAIN, "val": [VAL]}]))
    return folder


def test_a_run_on_partial_labels_scores_what_was_annotated(partial, finetune_settings, tmp_path):
    scores = finetune(finetune_settings(f"dataset={partial}", "training.steps=2"), tmp_path / "run")
    case = scores["cases"][VAL]
    assert {name for name, score in case.items() if score is not None} == {"liver", "aorta"}
    assert scores["mean"]["left_kidney"]["dice"] is None
    assert scores["counts"]["left_kidney"]["absent_in_both"] == 0
    assert scores["mean"]["all"]["dice"] == pytest.approx((case["liver"]["dice"] + case["aorta"]["dice"]) / 2)
    last = RunFolder(tmp_path / "run").read_metrics()[-1]
    by_label = [last[f"validation_dice_{name}"] for name in ("liver", "aorta")]
    assert last["validation_dice"] == pytest.approx(np.mean(by_label), rel=1e-4)
    assert last.get("validation_dice_left_kidney") is None
    assert np.isfinite(last["loss"])


def test_a_list_that_excludes_what_was_drawn_is_refused(partial, finetune_settings, tmp_path):
    content = json.loads((partial / "dataset.json").read_text())
    content["annotated_labels"][TRAIN[1]] = ["liver"]
    (partial / "dataset.json").write_text(json.dumps(content))
    assert Dataset.open(partial).annotated_labels(TRAIN[1]) == {0, content["labels"]["liver"]}
    with pytest.raises(
        DataError, match=rf"{TRAIN[1]}.nii.gz holds the label .* annotated_labels of {TRAIN[1]}"
    ):
        finetune(finetune_settings(f"dataset={partial}"), tmp_path / "run")
