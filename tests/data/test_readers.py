"""read_volume: the file's own grid, whatever the format; every bad file is one sentence that names it."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from misfm.data.readers import read_volume, stem
from misfm.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared test scans are not beside the repository"
)

OBLIQUE = np.array([[1.0, -0.3, 0.0, -20], [0.3, 1.0, 0.0, 12], [0, 0, 2.5, -7], [0, 0, 0, 1]])


def save_nifti(path, voxels, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def some_voxels(shape=(4, 5, 6), dtype=np.int16):
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(dtype)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_axes_are_reversed_and_every_voxel_keeps_its_place(tmp_path, name):
    voxels = some_voxels()
    volume = read_volume(save_nifti(tmp_path / name, voxels))
    assert volume.data.shape == (1, 6, 5, 4)
    assert volume.data.dtype == np.int16
    assert volume.data[0, 5, 3, 1] == voxels[1, 3, 5]
    assert volume.affine @ (5, 3, 1, 1) == pytest.approx(OBLIQUE @ (1, 3, 5, 1))
    assert volume.spacing == pytest.approx((2.5, 1.09**0.5, 1.09**0.5))


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd", "scan.nii.gz"])
def test_all_formats_agree(tmp_path, name):
    voxels = some_voxels()
    save_nifti(tmp_path / "reference.nii.gz", voxels)
    reference = read_volume(tmp_path / "reference.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "reference.nii.gz")), str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.data, reference.data)
    assert volume.affine == pytest.approx(reference.affine, abs=1e-4)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("uint8", "uint8"), ("int16", "int16"), ("int32", "int16"), ("uint16", "int16"), ("float64", "float32")],
)
def test_small_whole_numbers_stay_integers(tmp_path, stored, dtype):
    voxels = np.abs(some_voxels()).astype(stored)
    volume = read_volume(save_nifti(tmp_path / "scan.nii.gz", voxels))
    assert volume.data.dtype == dtype
    assert np.array_equal(volume.data[0], voxels.T)


def test_integers_beyond_int16_become_float32(tmp_path):
    voxels = some_voxels(dtype=np.int32) * 1000
    assert read_volume(save_nifti(tmp_path / "scan.nii", voxels)).data.dtype == np.float32


def test_scale_of_the_header_is_applied_and_hounsfield_units_stay_int16(tmp_path):
    image = nib.Nifti1Image(np.full((3, 4, 5), 1064, np.uint16), np.eye(4))
    image.header.set_slope_inter(1, -1024)
    raw = bytearray(image.to_bytes())
    (tmp_path / "scan.nii").write_bytes(raw)
    # to_bytes resets the scale, so write it where NIfTI-1 keeps it.
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()
    raw[352:] = np.full(60, 1064, "<u2").tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.data.dtype == np.int16
    assert (volume.data == 40).all()


def test_sform_is_trusted_before_qform(tmp_path):
    image = nib.Nifti1Image(some_voxels(), np.eye(4))
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    image.set_sform(np.diag([3.0, 3, 3, 1]), code=1)
    nib.save(image, tmp_path / "both.nii")
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "qform.nii")
    assert read_volume(tmp_path / "both.nii").spacing == (3, 3, 3)
    assert read_volume(tmp_path / "qform.nii").spacing == (2, 2, 2)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    assert read_volume(save_nifti(tmp_path / "scan.nii", some_voxels((4, 5, 6, 1)))).shape == (6, 5, 4)


def test_names_without_suffix():
    assert stem(Path("a/case.1.nii.gz")) == "case.1"
    assert stem(Path("CASE.NRRD")) == "CASE"
    assert stem(Path("1.2.840.77")) == "1.2.840.77"


def truncated(path):
    save_nifti(path, some_voxels((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-200])


def flipped_byte(path):
    content = bytearray(gzip.compress(nib.Nifti1Image(some_voxels(), np.eye(4)).to_bytes()))
    content[-8] ^= 1
    path.write_bytes(content)


def with_value(value):
    def write(path):
        voxels = some_voxels(dtype=np.float32)
        voxels[1, 2, 3] = value
        save_nifti(path, voxels)

    return write


def with_affine(affine):
    def write(path):
        header = nib.Nifti1Header()
        header.set_sform(np.array(affine, dtype=float), code=1)
        nib.save(nib.Nifti1Image(some_voxels(), None, header), path)

    return write


def colour(path):
    save_nifti(path, np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


SHEARED = [[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
FLAT = [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
NO_LENGTH = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
NOT_FINITE = [[1, 0, 0, np.nan], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

BAD = {
    "truncated gzip": (truncated, "cannot be read"),
    "damaged gzip": (flipped_byte, "incorrect data check"),
    "not a gzip": (lambda path: path.write_text("hello"), "cannot be read"),
    "not a NIfTI": (lambda path: path.write_bytes(gzip.compress(b"hello" * 100)), "cannot be read"),
    "empty file": (lambda path: path.write_bytes(b""), "cannot be read"),
    "2D": (lambda path: save_nifti(path, some_voxels((4, 5))), "2D"),
    "one slice": (lambda path: save_nifti(path, some_voxels((4, 5, 1))), "2D"),
    "4D": (lambda path: save_nifti(path, some_voxels((4, 5, 6, 2))), "4D"),
    "zero-size axis": (lambda path: save_nifti(path, some_voxels((4, 0, 6))), "no voxels"),
    "NaN": (with_value(np.nan), "NaN or infinite voxels"),
    "infinite": (with_value(-np.inf), "NaN or infinite voxels"),
    "shear": (with_affine(SHEARED), "shearing affine"),
    "flat": (with_affine(FLAT), "singular affine"),
    "no length": (with_affine(NO_LENGTH), "singular affine"),
    "not finite": (with_affine(NOT_FINITE), "affine with NaN"),
    "colour": (colour, "colour"),
    "complex": (lambda path: save_nifti(path, some_voxels().astype(np.complex64)), "complex64"),
    "missing": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_nifti_is_one_sentence_naming_the_file(tmp_path, fault, capfd):
    write, reason = BAD[fault]
    path = tmp_path / "bad.nii.gz"
    write(path)
    with pytest.raises(DataError) as error:
        read_volume(path)
    message = str(error.value)
    assert str(path) in message
    assert reason in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["bad.nrrd", "bad.mha", "bad.nhdr", "bad.mhd", "bad.nii"])
def test_damaged_files_of_other_formats(tmp_path, name, capfd):
    path = tmp_path / name
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n\nxx")
    with pytest.raises(DataError, match=name):
        read_volume(path)
    assert capfd.readouterr() == ("", "")


def test_vector_images_are_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.mha"))
    with pytest.raises(DataError, match=r"rgb\.mha holds colour"):
        read_volume(tmp_path / "rgb.mha")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt is no scan"):
        read_volume(tmp_path / "notes.txt")


@needs_shared
def test_real_scans_lie_where_simpleitk_sees_them():
    files = sorted(SHARED.glob("body/*.nii.gz")) + sorted(SHARED.glob("spinal_cord/*.nii.gz"))
    files += sorted(SHARED.glob("unlabelled/*/*.nii.gz"))[::40]
    assert files
    for path in files:
        volume, image = read_volume(path), sitk.ReadImage(str(path))
        assert np.allclose(volume.data[0], sitk.GetArrayFromImage(image)), path
        corner = [side - 1 for side in image.GetSize()]
        lps = np.array(image.TransformIndexToPhysicalPoint(corner))
        ras = (volume.affine @ (*corner[::-1], 1))[:3]
        assert ras == pytest.approx(lps * (-1, -1, 1), abs=0.02), path
