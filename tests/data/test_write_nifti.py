"""Label maps come back bit by bit on the same grid."""

import nibabel as nib
import numpy as np
import pytest

from misfm.data.readers import read_volume
from misfm.data.writers import write_label_map
from misfm.data.writers.names import names_by_value
from misfm.data.writers.nifti import NiftiWriter
from misfm.errors import DataError
from misfm.volume import Volume, grid_difference

AFFINE = np.array([[0, -0.6, 2.4, 5], [0, -1.2, -1.2, 7], [-3.0, 0, 0, 90], [0, 0, 0, 1]])


def label_map(highest):
    generator = np.random.default_rng(0)
    return Volume(generator.integers(0, highest + 1, (1, 4, 5, 6)), AFFINE)


@pytest.mark.parametrize(("highest", "dtype"), [(5, "uint8"), (255, "uint8"), (900, "int16")])
def test_round_trip(tmp_path, highest, dtype):
    path = tmp_path / "new" / "case.nii.gz"
    label = label_map(highest)
    label.data[0, 0, 0, 0] = highest
    write_label_map(path, label)
    again = read_volume(path)
    assert np.array_equal(again.data, label.data)
    assert again.affine == pytest.approx(AFFINE, abs=1e-5)
    image = nib.load(path)
    assert image.get_data_dtype() == dtype
    assert image.get_qform() == pytest.approx(image.get_sform(), abs=1e-4)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)


def test_the_same_label_map_is_the_same_file(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, label_map(3))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write .*case\.nii\.gz"):
        write_label_map(tmp_path / "file" / "case.nii.gz", label_map(2))


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\.nii\.gz"):
        write_label_map(tmp_path / "case.mha", label_map(2))


def scan_file(path, qform, sform, codes, kind=nib.Nifti1Image, unit="mm"):
    image = kind(np.arange(4 * 5 * 6, dtype=np.int16).reshape(6, 5, 4), sform)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return nib.load(path)


def assert_same_place(mask, scan):
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        assert np.array_equal(mask.header[field], scan.header[field]), field
    assert np.array_equal(mask.header["pixdim"][:4], scan.header["pixdim"][:4])
    assert mask.header.get_xyzt_units()[0] == scan.header.get_xyzt_units()[0]


PLACE = np.array([[-2, 0, 0, 30], [0, 2, 0, -40], [0, 0, 2, 10], [0, 0, 0, 1.0]])
MOVED = np.array([[-1.8, 0.6, 0, 40], [0.6, 1.8, 0, -35], [0, 0, 2, 3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (0, 4), (1, 0), (0, 0), (2, 4)], ids=str)
@pytest.mark.parametrize("unit", ["mm", "meter"])
def test_a_label_map_lies_where_its_scan_does_whatever_a_program_trusts(tmp_path, codes, unit):
    """qform and sform differ after a registration, and both codes say what space is meant."""
    scale = np.diag([0.001, 0.001, 0.001, 1]) if unit == "meter" else np.eye(4)
    scan = scan_file(tmp_path / "scan.nii.gz", scale @ PLACE, scale @ MOVED, codes, unit=unit)
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_label_map(tmp_path / "mask.nii.gz", volume.with_data((volume.data > 50).astype(np.uint8)))
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert_same_place(mask, scan)
    assert np.array_equal(mask.affine, scan.affine)
    again = read_volume(tmp_path / "mask.nii.gz")
    assert np.array_equal(again.affine, volume.affine)


def test_nifti_2_loses_digits_and_keeps_its_place(tmp_path):
    scan = scan_file(tmp_path / "scan.nii.gz", PLACE, MOVED / 3, (1, 2), nib.Nifti2Image)
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_label_map(tmp_path / "mask.nii.gz", volume.with_data(np.ones(volume.data.shape, np.uint8)))
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.get_sform(coded=True)[0] == pytest.approx(scan.get_sform(), abs=1e-5)
    assert mask.get_qform(coded=True)[0] == pytest.approx(scan.get_qform(), abs=1e-5)
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 2)


def test_a_volume_that_was_moved_is_no_longer_where_its_file_was(tmp_path):
    from dataclasses import replace

    scan_file(tmp_path / "scan.nii.gz", PLACE, MOVED, (1, 2))
    volume = read_volume(tmp_path / "scan.nii.gz")
    moved = replace(volume, affine=AFFINE, data=volume.data.astype(np.uint8))
    write_label_map(tmp_path / "mask.nii.gz", moved)
    assert read_volume(tmp_path / "mask.nii.gz").affine == pytest.approx(AFFINE, abs=1e-5)


def test_what_was_drawn_on_a_scan_is_on_its_grid_whichever_place_the_program_trusted(tmp_path):
    scan_file(tmp_path / "scan.nii.gz", PLACE, MOVED, (1, 2))
    scan = read_volume(tmp_path / "scan.nii.gz")
    by_qform = Volume(scan.data, PLACE[:, [2, 1, 0, 3]])
    assert grid_difference(by_qform, scan) == ""
    assert grid_difference(scan, by_qform) == ""
    elsewhere = Volume(scan.data, np.diag([3.0, 3, 3, 1]))
    assert "mm apart" in grid_difference(elsewhere, scan)


def test_the_names_of_labels_stand_in_a_table_that_itk_snap_reads(tmp_path):
    NiftiWriter().write_shared(tmp_path, {"liver": (1,), 'a "b"': (3,)})
    lines = (tmp_path / "labels.txt").read_text().splitlines()
    assert [line.split(None, 7)[::7] for line in lines[1:]] == [
        ["0", '"Clear Label"'],
        ["1", '"liver"'],
        ["3", "\"a 'b'\""],
    ]
    assert len({tuple(line.split()[1:4]) for line in lines[1:]}) == 3


def test_a_value_in_several_regions_has_the_names_of_all():
    regions = {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert names_by_value(regions) == {
        1: "whole tumour",
        2: "whole tumour + core",
        3: "whole tumour + core + enhancing",
    }
