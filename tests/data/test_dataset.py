"""Datasets in nnU-Net format, and cases whose parts do not fit together."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.data.dataset import Case, Dataset
from misfm.data.splits import read_split
from misfm.errors import DataError
from misfm.evaluation.labels import find_label_names

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared test scans are not beside the repository"
)

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
LABELS = {"background": 0, "left": 1, "right": 2}


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def describe(folder, **changes):
    content = {"channel_names": {"0": "CT", "1": "T2"}, "labels": LABELS, "file_ending": ".nii.gz"} | changes
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    folder = describe(tmp_path / "Dataset007_Two")
    generator = np.random.default_rng(0)
    for name in ("imagesTr/b", "imagesTr/a_1", "imagesTs/c"):
        save(folder / f"{name}_0000.nii.gz", generator.integers(-1000, 1000, (4, 5, 6)).astype(np.int16))
        save(folder / f"{name}_0001.nii.gz", generator.normal(0, 1, (4, 5, 6)).astype(np.float32))
    for name in ("a_1", "b"):
        save(folder / "labelsTr" / f"{name}.nii.gz", generator.integers(0, 3, (4, 5, 6)).astype(np.uint8))
    return folder


def test_cases_with_channels_and_labels(folder):
    dataset = Dataset.open(folder)
    assert dataset.channel_names == ("CT", "T2")
    assert dataset.kinds == ("ct", "mr")
    assert dataset.label_names == {0: "background", 1: "left", 2: "right"}
    assert dataset.ignore_label is None
    assert [case.name for case in dataset.cases()] == ["a_1", "b"]
    assert dataset.cases("Ts") == [
        Case("c", (folder / "imagesTs/c_0000.nii.gz", folder / "imagesTs/c_0001.nii.gz"), None)
    ]
    image, label = dataset.read_case(dataset.cases()[0])
    assert image.data.shape == (2, 6, 5, 4)
    assert image.data.dtype == np.float32
    assert label is not None
    assert label.data.dtype == np.uint8
    assert np.array_equal(label.data[0], nib.load(folder / "labelsTr/a_1.nii.gz").get_fdata().T)
    assert dataset.read_case(dataset.cases("Ts")[0])[1] is None


def test_labels_stored_as_floats_are_labels(folder):
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 2.0))
    label = Dataset.open(folder).read_case(Dataset.open(folder).cases()[1])[1]
    assert label is not None
    assert label.data.dtype == np.uint8


def test_ignore_and_the_first_version(tmp_path):
    dataset = Dataset.open(describe(tmp_path / "a", labels=LABELS | {"ignore": 3}))
    assert dataset.ignore_label == 3
    assert 3 not in dataset.label_names
    old = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left"}}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dataset.json").write_text(json.dumps(old))
    assert Dataset.open(tmp_path / "b").label_names == {0: "background", 1: "left"}
    assert Dataset.open(tmp_path / "b").channel_names == ("MRI",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"background": 0, "both": [1, 2]}}, "regions, so it must hold 'regions_class_order'"),
        ({"labels": {"left": 1}}, "must name the background, which is 0, and a label beside it"),
        ({"labels": {"background": 0, "left": "1"}}, "whole numbers"),
        ({"labels": LABELS | {"ignore": 1}}, "its own value"),
        ({"labels": LABELS | {"far": 9, "ignore": 3}}, "above all other labels"),
        ({"labels": {}}, "must name the background"),
        ({"labels": {"background": 0}}, "a label beside it"),
        ({"labels": {"background": 0, "left": -1}}, "whole numbers from 0"),
        ({"labels": LABELS | {"all": 3}}, "the name of the mean"),
        ({"channel_names": None}, "channel_names"),
    ],
)
def test_a_bad_description_is_refused(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason) as error:
        Dataset.open(describe(tmp_path / "d", **changes))
    assert "dataset.json" in str(error.value)


def test_files_that_a_mac_leaves_behind_are_no_cases(folder):
    (folder / "imagesTr" / "._b_0000.nii.gz").write_bytes(b"Mac OS X")
    assert [case.name for case in Dataset.open(folder).cases()] == ["a_1", "b"]


def test_one_channel_needs_no_number(tmp_path):
    folder = describe(tmp_path / "Task09", channel_names={"0": "CT"})
    for name in ("spleen_10", "spleen_9"):
        save(folder / f"imagesTr/{name}.nii.gz", np.zeros((4, 5, 6), np.int16))
        save(folder / f"labelsTr/{name}.nii.gz", np.ones((4, 5, 6), np.uint8))
    cases = Dataset.open(folder).cases()
    assert [(case.name, case.image_paths[0].name) for case in cases] == [
        ("spleen_10", "spleen_10.nii.gz"),
        ("spleen_9", "spleen_9.nii.gz"),
    ]
    assert Dataset.open(folder).read_case(cases[0])[1] is not None


def test_numbers_that_are_of_cases_are_no_channels(tmp_path):
    folder = describe(tmp_path / "ds", channel_names={"0": "CT"})
    for number in (1, 2):
        save(folder / f"imagesTr/img_000{number}.nii.gz", np.zeros((4, 5, 6), np.int16))
    assert [case.name for case in Dataset.open(folder).cases()] == ["img_0001", "img_0002"]


def test_channels_in_one_file_are_a_sentence_with_the_command(tmp_path):
    folder = describe(tmp_path / "Task01")
    save(folder / "imagesTr/b_1.nii.gz", np.zeros((4, 5, 6, 2), np.int16))
    with pytest.raises(DataError, match=r"b_1\.nii\.gz.*CASE_0000.*misfm convert .*Task01 --out"):
        Dataset.open(folder).cases()


def test_another_ending_is_told(tmp_path):
    folder = describe(tmp_path / "ds", channel_names={"0": "CT"})
    save(folder / "imagesTr/a_0000.nii", np.zeros((4, 5, 6), np.int16))
    with pytest.raises(DataError, match=r"ends in \.nii\.gz, but such as a_0000\.nii; write .*file_ending"):
        Dataset.open(folder).cases()


def test_files_that_are_listed_lie_anywhere(tmp_path):
    save(tmp_path / "p0/ct.nii.gz", np.zeros((4, 5, 6), np.int16))
    save(tmp_path / "p0/seg.nii.gz", np.ones((4, 5, 6), np.uint8))
    listed = {
        "p1": {"images": ["../p1/ct.nii.gz"]},
        "p0": {"images": ["../p0/ct.nii.gz"], "label": "../p0/seg.nii.gz"},
    }
    dataset = Dataset.open(describe(tmp_path / "ds", channel_names={"0": "CT"}, dataset=listed))
    first, second = dataset.cases()
    assert (first.name, second.name, second.label_path) == ("p0", "p1", None)
    image, label = dataset.read_case(first)
    assert image.shape == (6, 5, 4)
    assert label is not None


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({}, "with a case at least"),
        ([], "with a case at least"),
        ({"p0": []}, "'images' of case 'p0'"),
        ({"p0": {"images": [1]}}, "'images' of case 'p0'"),
        ({"p0": {"images": ["a", "b"]}}, "2 images of case 'p0' and names 1 channels"),
        ({"p0": {"images": ["a"], "label": 3}}, "'label' of case 'p0'"),
        ({"p\n0": {"images": ["a"]}}, "cannot be shown"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, listed, reason):
    with pytest.raises(DataError, match=reason):
        Dataset.open(describe(tmp_path / "ds", channel_names={"0": "CT"}, dataset=listed))


def test_a_channel_that_has_no_name_is_refused(folder):
    describe(folder, channel_names={"0": "CT"})
    with pytest.raises(DataError, match=r"a_1_0001\.nii\.gz is of channel 1, and dataset\.json names 1"):
        Dataset.open(folder).cases()


def test_no_description_or_no_images(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        Dataset.open(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match=r"CASE_0000\.nii\.gz"):
        Dataset.open(describe(tmp_path / "d")).cases()


def other_shape(folder):
    save(folder / "labelsTr/b.nii.gz", np.zeros((4, 5, 7), np.uint8))


def other_place(folder):
    moved = AFFINE.copy()
    moved[0, 3] = 0.5
    save(folder / "labelsTr/b.nii.gz", np.zeros((4, 5, 6), np.uint8), moved)


def other_direction(folder):
    save(folder / "labelsTr/b.nii.gz", np.zeros((4, 5, 6), np.uint8), np.diag([-1.0, 1, 2, 1]))


def unknown_label(folder):
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 7, np.uint8))


def fractions(folder):
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 0.5))


def no_channel(folder):
    (folder / "imagesTr/b_0001.nii.gz").unlink()


def channel_elsewhere(folder):
    save(folder / "imagesTr/b_0001.nii.gz", np.zeros((4, 5, 6), np.float32), np.diag([1.0, 1, 3, 1]))


@pytest.mark.parametrize(
    ("fault", "file", "reason"),
    [
        (other_shape, "labelsTr/b.nii.gz", r"another grid.*\(7, 5, 4\), not \(6, 5, 4\)"),
        (other_place, "labelsTr/b.nii.gz", r"another grid.*0\.5 mm apart"),
        (other_direction, "labelsTr/b.nii.gz", "another grid"),
        (unknown_label, "labelsTr/b.nii.gz", r"does not name \(7\)"),
        (fractions, "labelsTr/b.nii.gz", "not whole numbers"),
        (no_channel, "imagesTr/b_0001.nii.gz", r"missing: channel 1 \(T2\)"),
        (channel_elsewhere, "imagesTr/b_0001.nii.gz", "another grid"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_parts_that_do_not_fit_are_named(folder, fault, file, reason):
    fault(folder)
    dataset = Dataset.open(folder)
    with pytest.raises(DataError, match=reason) as error:
        dataset.read_case(dataset.cases()[1])
    assert str(folder / file) in str(error.value)


def test_rounding_of_header_numbers_is_no_other_grid(folder):
    nearly = AFFINE + np.pad(np.full((3, 1), 4e-3), ((0, 1), (3, 0)))
    save(folder / "labelsTr/b.nii.gz", np.zeros((4, 5, 6), np.uint8), nearly)
    dataset = Dataset.open(folder)
    image, label = dataset.read_case(dataset.cases()[1])
    assert label is not None
    assert np.array_equal(label.affine, image.affine)


def test_splits(folder):
    dataset = Dataset.open(folder)
    assert dataset.splits() == []
    (folder / "splits_final.json").write_text('[{"train": ["a_1"], "val": ["b"]}]')
    assert dataset.splits() == [{"train": ["a_1"], "val": ["b"]}]
    (folder / "splits_final.json").write_text('[{"train": ["a_1"], "val": ["z"]}]')
    with pytest.raises(DataError, match=r"not in imagesTr \(z\)"):
        dataset.splits()
    (folder / "splits_final.json").write_text('[{"train": ["a_1"]}]')
    with pytest.raises(DataError, match=r"is not a split.*train.*val"):
        dataset.splits()
    (folder / "splits_final.json").write_text("[]")
    with pytest.raises(DataError, match=r"splits_final\.json holds no fold"):
        dataset.splits()


def test_files_with_a_byte_order_mark_are_read_by_all(folder):
    mark = b"\xef\xbb\xbf"
    file, split = folder / "dataset.json", folder / "splits_final.json"
    file.write_bytes(mark + file.read_bytes())
    split.write_bytes(mark + b'[{"train": ["a_1"], "val": ["b"]}]')
    dataset = Dataset.open(folder)
    assert dataset.splits() == read_split(split) == [{"train": ["a_1"], "val": ["b"]}]
    found = find_label_names(folder / "labelsTr")
    assert found is not None
    assert found.values == {name: (value,) for value, name in dataset.label_names.items() if value > 0}


@needs_shared
def test_real_datasets():
    for name, labels, counts in (
        ("Dataset001_Hippocampus", 3, (62, 41)),
        ("Dataset002_HeadNeckCT", 6, (32, 24)),
    ):
        dataset = Dataset.open(SHARED / name)
        assert len(dataset.label_names) == labels
        assert (len(dataset.cases()), len(dataset.cases("Ts"))) == counts
        assert len(dataset.splits()[0]["train"]) + len(dataset.splits()[0]["val"]) == counts[0]
        image, label = dataset.read_case(dataset.cases()[0])
        assert label is not None
        assert label.shape == image.shape


def test_the_subject_of_a_case_is_told_or_guessed(folder):
    for name in ("sub-01_ses-2_T1w", "d"):
        save(folder / f"imagesTr/{name}_0000.nii.gz", np.zeros((4, 5, 6), np.int16))
    dataset = Dataset.open(describe(folder, subjects={"a_1": "anna", "c": 7}))
    names = ("a_1", "b", "c", "sub-01_ses-2_T1w")
    assert [dataset.subject(name) for name in names] == ["anna", "b", "7", "sub-01"]


def test_labels_that_were_not_contoured_must_not_occur(folder):
    save(folder / "labelsTr/a_1.nii.gz", np.full((4, 5, 6), 2, np.uint8))
    dataset = Dataset.open(describe(folder, annotated_labels={"a_1": ["right"]}))
    assert dataset.annotated_labels("a_1") == {0, 2}
    assert dataset.annotated_labels("b") == {0, 1, 2}
    assert dataset.read_case(dataset.cases()[0])[1] is not None
    dataset = Dataset.open(describe(folder, annotated_labels={"a_1": ["left"]}))
    with pytest.raises(DataError, match=r"labelsTr/a_1.nii.gz holds the label 'right'.* a_1"):
        dataset.read_case(dataset.cases()[0])


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"annotated_labels": {"a_1": ["lefft"]}}, "did you mean 'left'"),
        ({"annotated_labels": {"a1": ["left"]}}, "did you mean 'a_1'"),
        ({"annotated_labels": {"a_1": "left"}}, "must give annotated_labels as"),
        ({"annotated_labels": ["a_1"]}, "must give annotated_labels as"),
        ({"subjects": {"a1": "anna"}}, "did you mean 'a_1'"),
        ({"subjects": {"a_1": ["anna"]}}, "must give subjects as"),
    ],
)
def test_notes_on_cases_must_name_what_there_is(folder, notes, message):
    with pytest.raises(DataError, match=message):
        Dataset.open(describe(folder, **notes))


def test_label_maps_with_gaps_keep_their_values(folder):
    gaps = {"background": 0, "left": 1, "right": 255}
    voxels = np.zeros((4, 5, 6))
    voxels[0, 0, 0], voxels[1, 1, 1] = 0.99999, 255
    for name in ("a_1", "b"):
        save(folder / f"labelsTr/{name}.nii.gz", voxels)
    dataset = Dataset.open(describe(folder, labels=gaps))
    label = dataset.read_case(dataset.cases()[1])[1]
    assert label is not None
    assert np.unique(label.data).tolist() == [0, 1, 255]
    assert dataset.label_names == {0: "background", 1: "left", 255: "right"}
    dataset.check_values({0, 1})
    voxels[1, 1, 1] = 9
    save(folder / "labelsTr/b.nii.gz", voxels)
    with pytest.raises(DataError, match=r"does not name \(9\)"):
        dataset.read_case(dataset.cases()[1])


def test_a_value_beyond_a_gap_that_no_label_map_has_is_a_wrong_number(folder):
    dataset = Dataset.open(describe(folder, labels=LABELS | {"far": 4}))
    with pytest.raises(DataError, match="gives 'far' the value 4, which no label map has: correct"):
        dataset.check_values({0, 1, 2})
    Dataset.open(describe(folder, labels=LABELS | {"rare": 3})).check_values({0, 1})
    regions = {"labels": {"background": 0, "all of it": [1, 4], "rare": 4}, "regions_class_order": [1, 4]}
    Dataset.open(describe(folder, **regions)).check_values({0, 1})


def test_a_case_with_some_regions_contoured_has_their_values_alone(folder):
    regions = {"background": 0, "both": [1, 2], "right": 2}
    notes = {"labels": regions, "regions_class_order": [1, 2], "annotated_labels": {"b": ["right"]}}
    dataset = Dataset.open(describe(folder, **notes))
    assert dataset.annotated_labels("b") == {0, 2}
    with pytest.raises(DataError, match=r"holds the label 'both', which dataset\.json does not list"):
        dataset.read_case(dataset.cases()[1])
    save(folder / "labelsTr/b.nii.gz", np.full((4, 5, 6), 2, np.uint8))
    assert dataset.read_case(dataset.cases()[1])[1] is not None
