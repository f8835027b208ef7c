"""Regions that overlap, as of BraTS, and values with gaps: trained, validated, predicted, scored, kept."""

import json

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.export import export
from misfm.commands.finetune import finetune
from misfm.commands.folds import cross_validate
from misfm.commands.info import describe_path
from misfm.data.dataset import Dataset
from misfm.errors import DataError
from misfm.evaluation.evaluate import evaluate_folders
from misfm.training.run import RunFolder
from misfm.weights.file import read

AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
REGIONS = {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}
ORDER = [2, 1, 4]
LABELS = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4}
TINY = [
    "spacing=[2, 2, 2]",
    "training.steps=40",
    "training.validate_every=40",
    "training.optimizer.lr=0.01",
]


def write_brats(folder, *, cases=4, seed=0, **description):
    """Write heads of four channels with a tumour: oedema (2) around necrosis (1) around enhancement (4)."""
    for part, offset in (("Tr", 0), ("Ts", 100)):
        for number in range(offset, offset + (cases if part == "Tr" else 2)):
            rng = np.random.default_rng(seed + number)
            places = np.indices((24, 26, 24))
            head = (((places - 12) / 11) ** 2).sum(0) < 1
            distance = np.sqrt(((places - rng.uniform(9, 14, 3)[:, None, None, None]) ** 2).sum(0))
            label = np.select([distance < 2, distance < 4, distance < 6], [4, 1, 2], 0).astype(np.uint8)
            for channel, gains in enumerate(
                ((0, 0, -0.5, 1), (0, 1, 0.2, 0.5), (0, 0.2, 1, 1), (0, 1, 1, -0.5))
            ):
                gain = np.select([label == 2, label == 1, label == 4], gains[1:], 0)
                image = head * (100 + 80 * gain + rng.normal(0, 5, head.shape))
                save(folder / f"images{part}" / f"c{number}_{channel:04d}.nii.gz", image.astype(np.float32))
            save(folder / f"labels{part}" / f"c{number}.nii.gz", label)
    content = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "file_ending": ".nii.gz",
        "numTraining": cases,
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def values_in(folder):
    return {int(value) for path in folder.glob("*.nii.gz") for value in np.unique(nib.load(path).dataobj)}


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brats") / "Dataset044_Tumours"
    return write_brats(folder, labels=REGIONS, regions_class_order=ORDER)


@pytest.fixture(scope="module")
def trained(brats, tmp_path_factory, finetune_settings):
    out = tmp_path_factory.mktemp("runs") / "regions"
    return out, finetune(finetune_settings(f"dataset={brats}", *TINY), out)


def test_a_run_on_regions_scores_and_describes_them(trained, brats):
    out, scores = trained
    assert list(scores["mean"]) == ["whole", "core", "enhancing", "all"]
    assert scores["mean"]["whole"]["dice"] > 0.5
    last = RunFolder(out).read_metrics()[-1]
    assert last["validation_dice_whole"] == pytest.approx(scores["mean"]["whole"]["dice"], abs=0.1)
    assert {"dice_loss", "binary_cross_entropy", "train_dice"} <= last.keys()
    info = read(out / "weights.safetensors")[1]
    assert (info.format_version, info.num_classes, info.label_names) == (2, 3, ("whole", "core", "enhancing"))
    assert info.labels == {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    assert describe_path(out)["weights"]["regions_class_order"] == ORDER
    assert describe_path(brats)["labels"] == REGIONS


def test_masks_of_regions_have_the_values_of_their_order_and_are_scored_by_name(
    trained, brats, run_command, tmp_path
):
    out, _ = trained
    done = run_command("predict", "--run", out, "--input", brats / "imagesTs", "--output", tmp_path / "masks")
    assert done.status == 0, done.err
    assert values_in(tmp_path / "masks") <= {0, *ORDER}
    result = evaluate_folders(tmp_path / "masks", brats / "labelsTs")
    mask = np.asarray(nib.load(tmp_path / "masks/c100.nii.gz").dataobj) > 0
    reference = np.asarray(nib.load(brats / "labelsTs/c100.nii.gz").dataobj) > 0
    by_hand = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
    assert result["cases"]["c100"]["whole"]["dice"] == pytest.approx(by_hand)
    assert by_hand > 0.5


def test_folds_of_regions_label_together(brats, finetune_settings, run_command, tmp_path):
    few = ("folds=2", "training.steps=2", "training.validate_every=2")
    pooled = cross_validate(finetune_settings(f"dataset={brats}", *TINY, *few), tmp_path / "cv")
    assert set(pooled["mean"]) == {"whole", "core", "enhancing", "all"}
    scan = ("--input", brats / "imagesTs", "--output", tmp_path / "masks")
    assert run_command("predict", "--run", tmp_path / "cv", *scan).status == 0
    assert values_in(tmp_path / "masks") <= {0, *ORDER}


def test_ignored_voxels_and_partial_labels_of_regions(finetune_settings, tmp_path):
    description = {"labels": {**REGIONS, "ignore": 255}, "regions_class_order": ORDER}
    folder = write_brats(tmp_path / "d", **description, annotated_labels={"c0": ["core", "enhancing"]})
    for name, change in (("c0", {2: 0}), ("c1", {0: 255})):
        path = folder / f"labelsTr/{name}.nii.gz"
        voxels = np.asarray(nib.load(path).dataobj).copy()
        part = voxels[:, :, ::2]
        for value, new in change.items():
            (voxels if value else part)[(voxels if value else part) == value] = new
        save(path, voxels)
    splits = [{"train": ["c1", "c2", "c3"], "val": ["c0"]}, {"train": ["c0", "c1", "c2"], "val": ["c3"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    mixed = ("augmentation.p_carvemix=1.0", "training.steps=2", "training.validate_every=2")
    scores = finetune(finetune_settings(f"dataset={folder}", *TINY, *mixed), tmp_path / "run")
    assert scores["cases"]["c0"]["whole"] is None
    assert scores["counts"]["whole"]["scored"] == 0
    assert all(np.isfinite(row["loss"]) for row in RunFolder(tmp_path / "run").read_metrics())
    finetune(finetune_settings(f"dataset={folder}", *TINY, *mixed, "fold=1"), tmp_path / "other")
    assert all(np.isfinite(row["loss"]) for row in RunFolder(tmp_path / "other").read_metrics())


def test_values_with_a_gap_are_values_of_masks(finetune_settings, run_command, tmp_path):
    folder = write_brats(tmp_path / "d", labels=LABELS)
    longer = ("training.steps=60", "training.validate_every=60")
    scores = finetune(finetune_settings(f"dataset={folder}", *TINY, *longer), tmp_path / "run")
    assert list(scores["mean"]) == ["necrosis", "oedema", "enhancing", "all"]
    info = read(tmp_path / "run" / "weights.safetensors")[1]
    assert info.label_values == ((0,), (1,), (2,), (4,))
    scan = ("--input", folder / "imagesTs", "--output", tmp_path / "masks")
    done = run_command("predict", "--run", tmp_path / "run", *scan)
    assert done.status == 0, done.err
    assert {4} < values_in(tmp_path / "masks") <= {0, 1, 2, 4}
    result = evaluate_folders(tmp_path / "masks", folder / "labelsTs")
    assert result["mean"]["necrosis"]["dice"] > 0.3


def test_a_wrong_number_beyond_a_gap_is_refused_before_training(finetune_settings, tmp_path):
    folder = write_brats(tmp_path / "d", labels={**LABELS, "cyst": 9})
    with pytest.raises(DataError, match="gives 'cyst' the value 9, which no label map has"):
        finetune(finetune_settings(f"dataset={folder}", *TINY), tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert Dataset.open(folder).scheme.known == (0, 1, 2, 4, 9)


def test_own_files_of_regions_are_copied_with_what_they_mean(trained, tmp_path):
    out, _ = trained
    export(out, "safetensors", tmp_path / "copy.safetensors")
    assert read(tmp_path / "copy.safetensors")[1].scheme == read(out / "weights.safetensors")[1].scheme
