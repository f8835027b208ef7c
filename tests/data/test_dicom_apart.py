"""What lies in one DICOM series and is several scans all the same, and what is one scan in spite of it."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from misfm.data.dicom import list_series
from misfm.data.readers import read_volume
from misfm.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from odd_dicom_files import ORIGIN, write_enhanced, write_series, write_slice

PIXELS = np.random.default_rng(0).integers(0, 2000, (24, 12, 10)).astype(np.uint16)


def listed(folder):
    return list_series(file for file in sorted(folder.rglob("*")) if file.is_file()).series


def slices(folder, count, *, depth=0.0, gap=3.0, aside=0.0, **tags):
    for k in range(count):
        place = (ORIGIN[0] + aside, ORIGIN[1], ORIGIN[2] + depth + gap * k)
        number = tags.get("InstanceNumber", k + 1)
        write_slice(folder / f"{k}.dcm", PIXELS[k], place, **{**tags, "InstanceNumber": number})


@pytest.mark.parametrize(
    ("tag", "values", "parts"),
    [
        ("TemporalPositionIdentifier", (1, 2), ["time 1", "time 2"]),
        ("EchoTime", (5, 12), ["echo 5.0", "echo 12.0"]),
        ("DiffusionBValue", (0.0, 800.0), ["b-value 0.0", "b-value 800.0"]),
        (
            "ImageType",
            (["DERIVED", "SECONDARY", "MIP"], ["ORIGINAL", "PRIMARY"]),
            ["kind DERIVED/SECONDARY/MIP", "kind ORIGINAL/PRIMARY"],
        ),
    ],
)
@pytest.mark.parametrize("depth", [1.5, 1.0, 18.0])
def test_a_tag_that_differs_makes_scans_wherever_slices_lie(tmp_path, tag, values, parts, depth):
    for at, value in enumerate(values):
        slices(tmp_path / "s" / str(at), 6, depth=depth * at, **{tag: value})
        for file in (tmp_path / "s" / str(at)).iterdir():
            file.rename(tmp_path / f"{at}-{file.name}")
    found = listed(tmp_path)
    assert [one.part for one in found] in (parts, parts[::-1])
    assert [one.read().shape for one in found] == [(6, 12, 10)] * 2
    assert not any(one.notes for one in found)


def test_a_tag_that_changes_at_random_or_once_splits_nothing(tmp_path):
    for k in range(12):
        write_slice(
            tmp_path / f"{k}", PIXELS[k], (10, 20, 3 * k), EchoTime=5 + (k in (0, 1, 4, 6, 9)), EchoNumbers=k
        )
    (one,) = listed(tmp_path)
    assert one.read().shape == (12, 12, 10)


def test_stacks_side_by_side_in_one_file(tmp_path):
    path = write_enhanced(tmp_path / "ct.dcm", PIXELS[:12])
    ct = pydicom.dcmread(path)
    for k, group in enumerate(ct.PerFrameFunctionalGroupsSequence):
        side, at = divmod(k, 6)
        place = [10.0 + 80 * side, 20.0, 30.0 + 3 * at + 1.5 * side]
        group.PlanePositionSequence[0].ImagePositionPatient = place
        content = pydicom.Dataset()
        content.StackID = str(side + 1)
        group.FrameContentSequence = [content]
    ct.save_as(path)
    found = listed(tmp_path)
    assert [one.part for one in found] == ["stack 1", "stack 2"]
    for side, one in enumerate(found):
        assert np.array_equal(one.read().data[0], PIXELS[6 * side : 6 * side + 6].astype(int) - 1024)


@pytest.mark.parametrize("number", [None, 1])
@pytest.mark.parametrize(("count", "place"), [(4, {"depth": 1.5}), (6, {"depth": 18.0, "aside": 40.0})])
def test_two_patients_without_names_are_two_scans(tmp_path, number, count, place):
    tags = {} if number is None else {"InstanceNumber": number}
    slices(tmp_path / "a", count, **tags)
    slices(tmp_path / "b", count, **place, **tags)
    assert [one.read().shape for one in listed(tmp_path)] == [(count, 12, 10)] * 2


@pytest.mark.parametrize("number", [None, 1])
def test_one_stack_in_three_folders_is_one_scan(tmp_path, number):
    for k in range(24):
        tags = {"InstanceNumber": k + 1 if number is None else number}
        for name, folder in (("turns", k % 3), ("thirds", k // 8)):
            path = tmp_path / name / str(folder) / f"{k}.dcm"
            write_slice(path, PIXELS[k], (10, 20, 3 * k), SeriesInstanceUID=f"1.2.{len(name)}", **tags)
    assert [one.read().shape for one in listed(tmp_path)] == [(24, 12, 10)] * 2


def test_patients_whose_images_have_the_same_identifiers(tmp_path):
    for patient in range(2):
        for k in range(4):
            pixels = PIXELS[k + 4 * patient]
            write_slice(tmp_path / f"{patient}/{k}", pixels, (10, 20, 3 * k), SOPInstanceUID=f"1.2.9.{k}")
    assert len(listed(tmp_path)) == 2
    for file in (tmp_path / "1").iterdir():
        file.rename(tmp_path / f"0/other {file.name}")
    with pytest.raises(DataError, match="lie in the same place"):
        read_volume(tmp_path / "0")


def test_a_folder_that_was_copied_is_one_scan(tmp_path):
    slices(tmp_path / "a", 6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (one,) = listed(tmp_path)
    assert one.read().shape == (6, 12, 10)
    assert one.notes == ["6 slices were there twice and are taken once"]


@pytest.mark.parametrize(
    ("aside", "said"),
    [
        ([0, 0, 0, 9, 9, 9], "not evenly as by a tilted gantry"),
        ([0, 4, 8, 12, 16, 20], "tilted by 53.1 degrees, which none is"),
    ],
)
def test_displacement_that_is_no_tilt_is_refused(tmp_path, aside, said):
    for k, x in enumerate(aside):
        write_slice(tmp_path / f"{k}", PIXELS[k], (10 + x, 20, 3 * k))
    with pytest.raises(DataError, match=said):
        read_volume(tmp_path)
    assert write_series(tmp_path / "tilted", PIXELS[:6], tilt=0.5)
    assert read_volume(tmp_path / "tilted").shape[0] == 6
