"""Everything that is wrong with a dataset, at once: names, headers, voxels."""

import json

import nibabel as nib
import numpy as np
import pytest

from misfm.data.dataset import Dataset
from misfm.data.dataset_faults import doubts, faults

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def folder(tmp_path):
    """A sound dataset of two channels and four cases."""
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for name in "abcd":
        for channel in (0, 1):
            save(tmp_path / f"imagesTr/{name}_000{channel}.nii.gz", np.ones((4, 5, 6), np.int16))
        save(tmp_path / f"labelsTr/{name}.nii.gz", np.ones((4, 5, 6), np.uint8))
    return tmp_path


def found(folder, **options):
    return faults(Dataset.open(folder), **options)


def test_a_sound_dataset_has_no_faults(folder):
    assert doubts(Dataset.open(folder)) == found(folder) == found(folder, voxels=True) == []


def test_what_a_training_would_pass_over_is_told_by_name(folder):
    (folder / "labelsTr/b.nii.gz").rename(folder / "labelsTr/b_seg.nii.gz")
    save(folder / "imagesTr/e.nii.gz", np.ones((4, 5, 6), np.int16))
    (folder / "imagesTr/readme.txt").write_text("no scan")
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": 8}))
    without, image, label, announced = doubts(Dataset.open(folder))
    assert "1 case of 4 without a label map in labelsTr, not trained on: b;" in without
    assert "imagesTr: 1 file passed over" in image
    assert "e.nii.gz" in image
    assert "labelsTr: 1 label map without an image of that name: b_seg.nii.gz" in label
    assert "announces 8 training cases (numTraining) and there are 4" in announced


def test_headers_tell_missing_files_and_other_grids_of_all_cases(folder):
    (folder / "imagesTr/a_0001.nii.gz").unlink()
    save(folder / "imagesTr/b_0001.nii.gz", np.ones((4, 5, 7), np.int16))
    save(folder / "labelsTr/c.nii.gz", np.ones((4, 5, 6), np.uint8), np.eye(4))
    (folder / "imagesTr/d_0000.nii.gz").write_bytes(b"no scan")
    missing, shape, place, damaged = found(folder)
    assert "a_0001.nii.gz is missing: channel 1 (T2) of case a" in missing
    assert "b_0001.nii.gz lies on another grid than b_0000.nii.gz: its shape is (7, 5, 4)" in shape
    assert "c.nii.gz lies on another grid" in place
    assert "d_0000.nii.gz cannot be read" in damaged


def test_voxels_tell_unknown_labels_and_values_that_are_none(folder):
    save(folder / "imagesTr/a_0000.nii.gz", np.full((4, 5, 6), np.nan, np.float32))
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 3, np.uint8))
    save(folder / "labelsTr/c.nii.gz", np.full((4, 5, 6), 0.5, np.float32))
    assert found(folder) == []
    seen = []
    nan, unknown, fraction = found(folder, voxels=True, progress=lambda done, of: seen.append((done, of)))
    assert "a_0000.nii.gz has NaN or infinite voxels" in nan
    assert "b.nii.gz has labels that dataset.json does not name (3)" in unknown
    assert "c.nii.gz has label values that are not whole numbers" in fraction
    assert seen[-1] == (4, 4)


def test_splits_that_name_other_cases_are_a_fault(folder):
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["z"]}]))
    assert ["(z)" in fault for fault in found(folder)] == [True]


def test_info_tells_faults_and_check_ends_with_them(folder, run_command):
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 3, np.uint8))
    (folder / "imagesTr/a_0001.nii.gz").unlink()
    done = run_command("info", folder, "--json")
    assert (done.status, len(done.result["faults"])) == (0, 1)
    done = run_command("info", folder, "--check", "--json")
    assert (done.status, done.result["whole"], len(done.result["faults"])) == (1, False, 2)
    assert "labels that dataset.json does not name (3)" in done.out


def test_fine_tuning_says_what_it_passes_over(folder, run_command, tmp_path, tiny_finetuning):
    (folder / "labelsTr/b.nii.gz").unlink()
    out = tmp_path / "run"
    done = run_command("finetune", "--dataset", folder, "--out", out, "--cases", "9", *tiny_finetuning)
    assert "1 case of 4 without a label map in labelsTr, not trained on: b" in done.err
    assert done.status == 2  # there are not nine cases


def test_a_value_beyond_a_gap_that_no_label_map_has_is_a_fault_of_the_voxels(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "liver": 1, "core": 4}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert found(folder) == []
    (gap,) = found(folder, voxels=True)
    assert "gives 'core' the value 4, which no label map has" in gap
