"""Every reader: the same voxels in the same place, damage is one sentence, and nothing global changes."""

import logging
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import misfm
from misfm.data.quiet import quiet_logger
from misfm.data.readers import READERS, SeriesReader, read_volume, reader_of
from misfm.data.scan import find_scans
from misfm.errors import DataError

AFFINE = np.array([[0, -0.96, -0.96, 10], [0, -1.28, 0.72, -20], [2.5, 0, 0, 30], [0, 0, 0, 1]])
"""(D, H, W) to RAS: turned about the patient's long axis, another spacing along every axis."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(path, voxels):
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), AFFINE[:, [2, 1, 0, 3]]), path)


def write_itk(path, voxels):
    affine = (LPS @ AFFINE)[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))


def write_dicom(path, voxels):
    """A series of files in the folder of ``path``, which is the first of them."""
    affine = LPS @ AFFINE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = (affine[:3, :3] / spacing).T
    for k, pixels in enumerate(voxels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, f"1.2.{k + 1}", "1.2"
        one.Rows, one.Columns = pixels.shape
        one.ImagePositionPatient = [f"{value:.8g}" for value in affine[:3, 3] + k * affine[:3, 0]]
        one.ImageOrientationPatient = [f"{value:.8g}" for value in (*axes[2], *axes[1])]
        one.PixelSpacing = [f"{value:.8g}" for value in spacing[1:]]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = pixels.astype("<i2").tobytes()
        one.save_as(path if k == 0 else path.with_name(f"{k}.dcm"), enforce_file_format=True)


WRITERS = {"nifti": write_nifti, "nrrd": write_itk, "metaimage": write_itk, "dicom": write_dicom}
"""How a test writes each format: a new reader has a new line here."""

KINDS = [(name, suffix) for name in READERS.names() for suffix in READERS.get(name).suffixes]


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


@pytest.fixture
def written(tmp_path, voxels):
    """Write the voxels in a format; returns the path."""

    def write(name, suffix):
        path = tmp_path / f"scan.1{suffix}"
        WRITERS[name](path, voxels)
        return path

    return write


def test_every_reader_has_a_way_to_write_its_format():
    assert set(READERS.names()) == set(WRITERS)


def test_no_two_readers_take_the_same_suffix():
    suffixes = [suffix for _, suffix in KINDS]
    assert len(suffixes) == len(set(suffixes))
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)


@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_voxels_and_their_places_are_read_as_written(written, voxels, name, suffix):
    volume = read_volume(written(name, suffix))
    assert np.array_equal(volume.data[0], voxels)
    assert volume.data.dtype == np.int16
    assert volume.affine == pytest.approx(AFFINE, abs=1e-4)
    assert volume.spacing == pytest.approx((2.5, 1.6, 1.2), abs=1e-5)


@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_a_name_in_capitals_is_the_same_name(written, voxels, name, suffix):
    path = written(name, suffix)
    assert type(reader_of(path.rename(path.with_name(path.name.upper())))) is READERS.get(name)


@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_it_is_found_in_a_tree_and_alone(written, tmp_path, voxels, name, suffix):
    path = written(name, suffix)
    for source in (tmp_path, path):
        (scan,) = find_scans([source])
        assert scan.case == (tmp_path.name if scan.series else "scan.1")
        assert np.array_equal(scan.read().data[0], voxels)
        assert scan.stamp == find_scans([source])[0].stamp


def cut(path):
    (file,) = reader_of(path).beside(path) or [path]
    file.write_bytes(file.read_bytes()[:-20])


def garble(path):
    path.write_bytes(b"nothing that any format begins with" * 20)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, garble, empty])
@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_damage_is_one_sentence_that_names_the_file(written, tmp_path, capfd, name, suffix, damage):
    path = written(name, suffix)
    damage(path)
    with pytest.raises(DataError) as error:
        read_volume(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().out == ""


LOGGERS = ("", "nibabel", "nibabel.global", "pydicom", "SimpleITK", "misfm")


def global_state():
    return (
        {name: (logging.getLogger(name).level, list(logging.getLogger(name).filters)) for name in LOGGERS},
        sitk.ProcessObject.GetGlobalWarningDisplay(),
        vars(pydicom.config.settings).copy(),
    )


@pytest.fixture(params=[True, False])
def users_settings(request):
    """What a user chose before calling us, in either way, and what it was before."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(request.param)
    for name in LOGGERS[1:]:
        logging.getLogger(name).setLevel(logging.DEBUG if request.param else logging.ERROR)
    yield global_state()
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_reading_changes_nothing_that_is_the_users(written, users_settings, name, suffix):
    path = written(name, suffix)
    before = users_settings
    read_volume(path)
    assert global_state() == before
    find_scans([path.parent])[0].read()
    assert global_state() == before
    garble(path)
    with pytest.raises(DataError):
        read_volume(path)
    assert global_state() == before


def test_importing_changes_nothing_that_is_the_users():
    script = """
import logging, SimpleITK, nibabel, pydicom
def state():
    levels = [logging.getLogger(name).level for name in ("", "nibabel", "pydicom", "SimpleITK")]
    return levels, SimpleITK.ProcessObject.GetGlobalWarningDisplay()
before = state()
import misfm
misfm.read_volume, misfm.ingest, misfm.Dataset
from misfm.data.readers import READERS
READERS.names()
assert state() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_good_file_is_opened_once(written, monkeypatch):
    opened = []
    real = Path.open

    def open_(self, *args, **kwargs):
        opened.extend(
            [self.name] * self.name.startswith("scan")
        )  # of files that tell what memory is free, no
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    read_volume(written("nifti", ".nii.gz"))
    assert len(opened) <= 1


def test_a_misleading_name_does_not_keep_a_scan_from_being_read(written, voxels, tmp_path):
    path = written("dicom", ".dcm")
    renamed = [file.rename(file.with_suffix(".nii.gz")) for file in tmp_path.iterdir()]
    assert not path.exists()
    assert np.array_equal(read_volume(renamed[0]).data[0], voxels)
    assert np.array_equal(read_volume(tmp_path).data[0], voxels)


def test_series_are_parts_and_files_are_wholes():
    assert [name for name in READERS.names() if issubclass(READERS.get(name), SeriesReader)] == ["dicom"]
    assert misfm.read_volume is read_volume


def test_of_readers_in_several_threads_the_last_restores():
    logger = logging.getLogger("quiet-test")
    logger.setLevel(logging.INFO)
    quiet = quiet_logger("quiet-test")
    levels = []
    with ExitStack() as second:
        with quiet:
            second.enter_context(quiet)
            levels.append(logger.level)
        levels.append(logger.level)
    assert levels == [logging.CRITICAL] * 2
    assert logger.level == logging.INFO
