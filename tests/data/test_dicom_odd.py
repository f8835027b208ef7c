"""DICOM that is odd in one way each: the table of benchmarks/odd_dicom.py, and what lies behind it."""

import logging
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.data.dicom import is_dicom, list_series, series_at
from misfm.data.dicom.grid import _hole
from misfm.data.readers import read_volume
from misfm.data.scan import find_scans
from misfm.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import odd_dicom
from odd_dicom_files import ORIGIN, write_enhanced, write_series, write_slice


@pytest.mark.parametrize("odd", odd_dicom.ODD, ids=lambda odd: odd.title)
def test_what_a_series_gives_is_what_the_table_says(tmp_path, caplog, odd):
    told = []
    with caplog.at_level(logging.INFO, "misfm"):
        given = odd_dicom.give(odd, tmp_path, told)
    assert (given.voxels, given.scans) == (odd.voxels, odd.scans), given.said
    assert odd.said in "; ".join([*given.said, *caplog.messages])


def test_the_table_shows_what_is_generated():
    table = (Path(__file__).parents[2] / "benchmarks/results/odd_dicom.md").read_text()
    assert all(f"| {odd.title} |" in table for odd in odd_dicom.ODD)
    assert len(odd_dicom.ODD) >= 20


def test_one_scan_as_nifti_classic_and_enhanced_dicom(tmp_path):
    stored = odd_dicom.stored_values()
    classic = read_volume(write_series(tmp_path / "classic", stored))
    enhanced = read_volume(write_enhanced(tmp_path / "enhanced" / "ct.dcm", stored))
    image = nib.Nifti1Image(classic.data[0].transpose(2, 1, 0), classic.affine[:, [2, 1, 0, 3]])
    nib.save(image, tmp_path / "ct.nii.gz")
    nifti = read_volume(tmp_path / "ct.nii.gz")
    for other in (enhanced, nifti):
        assert np.array_equal(other.data, classic.data)
        assert other.data.dtype == classic.data.dtype == np.int16
        assert other.affine == pytest.approx(classic.affine, abs=1e-5)


def test_uneven_and_tilted_slices_keep_their_places(tmp_path):
    """A ramp in depth and along the columns is linear, so interpolation must give it back everywhere."""
    depths, tilt = np.array([0, 2, 4, 6, 8, 11, 14.0]), 0.25
    rows = np.arange(30)[:, None] * 0.8
    y = rows + tilt * depths[:, None, None]
    stored = np.rint(1024 + 20 * depths[:, None, None] + 10 * y + np.zeros((7, 30, 8))).astype(np.uint16)
    scan = series_at(write_series(tmp_path / "ramp", stored, depths=depths, tilt=tilt))
    volume = scan.read()
    assert volume.spacing == pytest.approx((2, 0.8, 0.5))
    assert len(scan.notes) == 2
    d, h = np.indices(volume.shape[:2])
    ramp = 20 * 2 * d + 10 * 0.8 * h
    middle = volume.data[0, :, 6:28, 4]
    assert np.abs(middle - ramp[:, 6:28]).max() <= 1
    assert volume.affine @ (0, 0, 0, 1) == pytest.approx((-ORIGIN[0], -ORIGIN[1], ORIGIN[2], 1))


@pytest.mark.parametrize(
    ("gaps", "hole"),
    [
        ([3, 3, 3, 6, 3, 3], 3),
        ([3, 3, 3, 9, 3], 3),
        ([3, 6, 6, 3, 3], 1),
        ([3, 3, 3, 6], 3),
        ([6, 3, 3, 3], 0),
        ([3, 6], 1),
        ([3, 3, 3, 8, 8, 16, 8, 8], 5),
        ([3, 3, 3, 10.5, 3, 3], 3),
        ([3, 3, 3, 6, 6], None),
        ([3, 3, 3, 6, 6, 6, 3, 3], None),
        ([4, 4, 1.08, 7], None),
        ([3, 3.2, 2.9, 3.1, 3], None),
        ([3, 3, 4.6, 3, 3], None),
    ],
)
def test_a_lost_slice_is_known_from_a_protocol_with_several_gaps(gaps, hole):
    found = _hole(np.array(gaps, float))
    assert (None if found is None else found[0]) == hole


def test_whose_series_it_is(tmp_path):
    write_series(tmp_path / "a", odd_dicom.stored_values(), PatientID="P7", StudyInstanceUID="9.8")
    (series,) = list_series(tmp_path.rglob("*.dcm")).series
    assert (series.uid, series.study_uid, series.patient_id) == ("1.2.3", "9.8", "P7")
    assert (series.frame_of_reference, series.part, series.notes) == ("1.2.4", "", [])


def test_two_scans_in_one_file_have_names_of_their_own(tmp_path):
    odd_dicom.enhanced_times(tmp_path, odd_dicom.stored_values())
    first, second = find_scans([tmp_path])
    assert (first.case, second.case) == ("series-1_time-1", "series-1_time-2")
    assert second.source == f"{tmp_path / 'mr.dcm'}#time 2"
    with pytest.raises(DataError, match=r"holds 2 scans \(time 1, time 2\)"):
        read_volume(tmp_path / "mr.dcm")


def test_a_series_without_preamble_is_known_by_its_first_elements(tmp_path):
    odd_dicom.bare(tmp_path, odd_dicom.stored_values())
    assert all(map(is_dicom, tmp_path.iterdir()))
    for name, content in {
        "text": b"a text that says nothing of interest\n" * 40,
        "zeros": bytes(4000),
        "short": b"\x08\x00\x05\x00",
        "backwards": b"\x08\x00\x18\x00\x02\x00\x00\x001\x00\x08\x00\x16\x00\x02\x00\x00\x001\x00" * 30,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name)


def test_a_folder_with_nothing_but_a_scout_says_so(tmp_path):
    write_slice(tmp_path / "scout" / "1", odd_dicom.stored_values()[0], ORIGIN)
    with pytest.raises(DataError, match="holds no scan, 1 x 2D image that stands alone"):
        find_scans([tmp_path])
    with pytest.raises(DataError, match="is no 3D scan but a 2D image that stands alone, such as a scout"):
        read_volume(tmp_path / "scout" / "1")


def test_what_was_repaired_is_told_by_ingest(tmp_path, run_command):
    generator = np.random.default_rng(0)
    voxels = generator.integers(900, 1300, (12, 24, 24)).astype(np.uint16)
    write_series(tmp_path / "ct", voxels, depths=[*range(0, 18, 3), *range(20, 50, 5)])
    done = run_command("ingest", tmp_path / "ct", "--store", tmp_path / "store", "--json")
    (repaired,) = done.result["repaired"]
    assert repaired["notes"].startswith("uneven gaps between slices, 3.00 to 5.00 mm, were resampled")
    assert "uneven gaps" in done.err


@pytest.mark.parametrize("title", ["JPEG 2000, lossless", "JPEG-LS, lossless", "JPEG, lossless (process 14)"])
def test_a_damaged_image_is_a_sentence_and_decoders_write_nothing(tmp_path, capfd, title):
    odd = next(odd for odd in odd_dicom.ODD if odd.title == title)
    odd.write(tmp_path, odd_dicom.stored_values())
    file = max(tmp_path.iterdir())
    content = file.read_bytes()
    at = content.rindex(b"\xff", 0, len(content) - 120)
    file.write_bytes(content[: at - 60] + bytes(64) + content[at + 4 :])
    with pytest.raises(DataError, match=f"{file.name} cannot be read"):
        read_volume(tmp_path)
    assert capfd.readouterr().err == ""


def test_odd_values_of_a_patient_are_not_warned_of(tmp_path, capfd, recwarn):
    write_series(tmp_path, odd_dicom.stored_values(), PatientID="P1")
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"1.2.3\x00", b"1.Smith"[:6]))
    assert read_volume(tmp_path).shape == (6, 12, 10)
    assert not recwarn.list
    assert capfd.readouterr().err == ""
