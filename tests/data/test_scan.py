"""find_scans: everything that is a scan, nothing else, in the same order every time."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from misfm.data.scan import find_scans
from misfm.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared test scans are not beside the repository"
)


def scan(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    return path


def dataset(folder, channels=("CT",)):
    for number in range(len(channels)):
        for name in ("imagesTr/a", "imagesTr/b", "imagesTs/c"):
            scan(folder / f"{name}_{number:04d}.nii.gz", seed=number)
    scan(folder / "labelsTr" / "a.nii.gz")
    description = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background": 0, "organ": 1},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_a_tree_of_files(tmp_path):
    for name in (
        "b/two.nrrd",
        "a/one.nii.gz",
        "c/deep/er/three.mha",
        "four.nii",
        ".hidden/five.nii",
        "a/._one.nii.gz",
    ):
        if "._" in name:
            (tmp_path / name).write_bytes(b"left by a Mac")
        else:
            scan(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no scan")
    assert [one.case for one in find_scans([tmp_path])] == ["one", "two", "three", "four"]
    assert [one.path.name for one in find_scans([tmp_path / "four.nii", tmp_path])] == [
        "four.nii",
        "one.nii.gz",
        "two.nrrd",
        "three.mha",
    ]


def test_a_source_with_nothing_in_it(tmp_path):
    with pytest.raises(DataError, match="holds no scan"):
        find_scans([tmp_path])
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_scans([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(DataError, match=r"notes\.txt holds no scan"):
        find_scans([tmp_path / "notes.txt"])


def test_scans_of_other_formats_are_told_by_number_and_name(tmp_path, caplog):
    scan(tmp_path / "a.nii.gz")
    for name in ("b.mgz", "c.img", "c.hdr", "d.hdr", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [found.case for found in find_scans([tmp_path])] == ["a"]
    assert "3 file(s) that look like scans" in caplog.text
    assert "(1 .hdr, 1 .img, 1 .mgz: b.mgz, c.img, d.hdr)" in caplog.text
    caplog.clear()
    find_scans([tmp_path], by_name=False)
    assert "(1 .hdr, 1 .img, 1 .mgz)" in caplog.text
    assert str(tmp_path) not in caplog.text
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"holds no scan but files of formats that are not read \(.*b\.mgz"):
        find_scans([tmp_path])


def test_a_dataset_that_lists_its_files_gives_the_images_of_the_list(tmp_path):
    scan(tmp_path / "elsewhere" / "p0" / "ct.nii.gz")
    listed = {"p0": {"images": ["../elsewhere/p0/ct.nii.gz"], "label": "../elsewhere/p0/seg.nii.gz"}}
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "dataset": listed})
    )
    found = find_scans([tmp_path / "ds"])
    image = (tmp_path / "elsewhere" / "p0" / "ct.nii.gz").resolve()
    assert [(one.case, one.kind, one.path.resolve()) for one in found] == [("p0", "ct", image)]


def test_a_dataset_gives_its_images_but_not_its_labels(tmp_path):
    folder = dataset(tmp_path / "tree" / "Dataset001_Organ")
    for source in (tmp_path / "tree", folder, folder / "dataset.json"):
        found = find_scans([source])
        assert [one.case for one in found] == ["a", "b"]
        assert {one.kind for one in found} == {"ct"}


def test_labels_of_any_kind_are_no_reason_to_leave_out_the_images(tmp_path):
    folder = dataset(tmp_path / "Dataset001_Organ")
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
    (folder / "dataset.json").write_text(json.dumps(description))
    assert [found.case for found in find_scans([folder])] == ["a", "b"]


def test_images_without_channel_numbers_are_scans(tmp_path):
    folder = tmp_path / "Task04_Hippocampus"
    for name in ("hippocampus_001", "._hippocampus_001", "hippocampus_367"):
        scan(folder / "imagesTr" / f"{name}.nii.gz")
    scan(folder / "labelsTr" / "hippocampus_001.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "background"}})
    )
    found = find_scans([tmp_path])
    assert [(one.case, one.kind) for one in found] == [("hippocampus_001", "mr"), ("hippocampus_367", "mr")]


def test_numbers_of_cases_are_no_channels(tmp_path):
    folder = tmp_path / "AMOS"
    for name in ("amos_0004", "amos_0600", "atlas"):
        scan(folder / "imagesTr" / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}}))
    assert [found.case for found in find_scans([folder])] == ["amos_0004", "amos_0600", "atlas"]


def test_a_dataset_without_images_is_a_sentence(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}}))
    with pytest.raises(DataError, match="imagesTr holds no image"):
        find_scans([tmp_path / "dataset.json"])


def test_a_damaged_dataset_in_a_tree_does_not_hide_the_rest(tmp_path):
    scan(tmp_path / "good.nii.gz")
    folder = dataset(tmp_path / "damaged")
    (folder / "dataset.json").write_text("{")
    damaged, good = find_scans([tmp_path])
    assert good.read().shape == (4, 5, 6)
    with pytest.raises(DataError, match=r"dataset\.json cannot be read as JSON"):
        damaged.read()
    with pytest.raises(DataError, match=r"dataset\.json cannot be read as JSON"):
        find_scans([folder])


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_voxels_beside_a_header_count_in_its_stamp(tmp_path, ending):
    (source,) = find_scans([scan(tmp_path / f"a.{ending}")])
    before = source.stamp
    (voxels,) = (path for path in tmp_path.iterdir() if path != source.path)
    os.utime(voxels, ns=(0, 0))
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert source.stamp != before


def test_channels_of_a_dataset_are_scans_of_their_own(tmp_path):
    found = find_scans([dataset(tmp_path / "d", ("CT", "PET"))])
    assert [(one.case, one.kind) for one in found][:2] == [("a_0000", "ct"), ("a_0001", "pet")]
    assert len(found) == 4


def test_test_images_of_a_dataset_must_be_asked_for(tmp_path):
    folder = dataset(tmp_path / "Dataset001_Organ")
    assert [one.path.name for one in find_scans([folder / "imagesTs"])] == ["c_0000.nii.gz"]


def test_linked_folders_are_followed_once(tmp_path):
    scan(tmp_path / "elsewhere" / "one.nii.gz")
    tree = tmp_path / "tree"
    scan(tree / "sub" / "two.nii.gz")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "again").symlink_to(tmp_path / "elsewhere")
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "gone").symlink_to(tmp_path / "nowhere")
    dataset(tmp_path / "data")
    (tree / "data").symlink_to(tmp_path / "data")
    assert sorted(one.case for one in find_scans([tree])) == ["a", "b", "one", "two"]


def test_a_folder_that_cannot_be_read_is_returned_for_its_error(tmp_path, monkeypatch):
    scan(tmp_path / "a.nii.gz")
    locked = tmp_path / "locked"
    scan(locked / "b.nii.gz")

    def refusing(function):
        def call(path):
            if Path(path) == locked:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    # A superuser may read everything, so permissions alone would not do.
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    good, bad = find_scans([tmp_path])
    assert good.read().shape == (4, 5, 6)
    assert (bad.path, bad.case) == (locked, "locked")
    assert bad.stamp
    with pytest.raises(DataError, match="locked may not be read; change its permissions"):
        bad.read()


def test_lists_of_nnssl(tmp_path):
    folder = tmp_path / "nnssl_raw" / "Dataset745_Brains"
    scan(tmp_path / "nnssl_raw" / "pictures" / "x.nii.gz")
    scan(folder / "y.nii.gz")

    def image(name, path, modality, masks=None):
        return {"name": name, "image_path": path, "modality": modality, "associated_masks": masks}

    images = [
        image(
            "x.nii.gz",
            "$nnssl_raw/pictures/x.nii.gz",
            "T1w",
            {"anonymization_mask": "$nnssl_raw/masks/x.nii.gz", "anatomy_mask": None},
        ),
        image("y.nii.gz", "y.nii.gz", "CT"),
        image("gone.nii.gz", "$nnssl_raw/gone.nii.gz", None),
    ]
    sessions = {"ses-DEFAULT": {"session_id": "ses-DEFAULT", "images": images}}
    subjects = {"sub-01": {"subject_id": "sub-01", "sessions": sessions}}
    content = {
        "collection_index": 745,
        "collection_name": "Brains",
        "datasets": {"ds1": {"subjects": subjects}},
    }
    (folder / "pretrain_data.json").write_text(json.dumps(content))
    for source in (folder, folder / "pretrain_data.json"):
        found = {one.case: one for one in find_scans([source])}
        prefix = "Brains__ds1__sub-01__ses-DEFAULT__"
        assert {case.removeprefix(prefix) for case in found} == {"x.nii.gz", "y.nii.gz", "gone.nii.gz"}
        assert found[f"{prefix}x.nii.gz"].read().shape == (4, 5, 6)
        assert found[f"{prefix}x.nii.gz"].kind == "mr"
        assert found[f"{prefix}y.nii.gz"].kind == "ct"
        assert found[f"{prefix}x.nii.gz"].anonymised_path == tmp_path / "nnssl_raw" / "masks" / "x.nii.gz"
        assert found[f"{prefix}y.nii.gz"].anonymised_path is None
        with pytest.raises(DataError, match=r"gone\.nii\.gz does not exist"):
            found[f"{prefix}gone.nii.gz"].read()


@pytest.mark.parametrize("content", ["", "[]", '{"datasets": {"a": {}}}', '{"datasets": 1}'])
def test_a_damaged_list(tmp_path, content):
    (tmp_path / "pretrain_data.json").write_text(content)
    with pytest.raises(DataError, match=r"pretrain_data\.json is no list of images"):
        find_scans([tmp_path])


def test_a_list_with_an_empty_path(tmp_path):
    session = {"images": [{"name": "x", "image_path": ""}]}
    content = {"collection_name": "C", "datasets": {"d": {"subjects": {"s": {"sessions": {"t": session}}}}}}
    (tmp_path / "pretrain_data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"pretrain_data\.json gives no image_path for C__d__s__t__x"):
        find_scans([tmp_path])


def test_a_file_that_pretends_to_be_dicom_is_returned_for_its_error(tmp_path):
    (tmp_path / "bad.dcm").write_bytes(b"nothing")
    (one,) = find_scans([tmp_path])
    with pytest.raises(DataError, match=r"bad\.dcm is no scan"):
        one.read()


def test_stamps_change_with_the_file(tmp_path):
    scan(tmp_path / "a.nii.gz")
    before = find_scans([tmp_path])[0].stamp
    assert find_scans([tmp_path])[0].stamp == before
    scan(tmp_path / "a.nii.gz", seed=1)
    assert find_scans([tmp_path])[0].stamp != before


@needs_shared
def test_real_dicom_folders_are_grouped_by_series():
    found = [one for one in find_scans([SHARED / "dicom"]) if one.series]
    assert [(one.case, len(one.series.files), one.modality) for one in found] == [
        ("abdomen_ct_j2k", 20, "CT"),
        ("head_ct_tilt_gap", 5, "CT"),
        ("head_t1_rotated_iop", 17, "CT"),
    ]
    assert found[2].read().shape == (17, 128, 88)
