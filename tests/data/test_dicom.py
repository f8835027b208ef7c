"""DICOM series: order by position, orientation, tilt, gaps, several series in one folder."""

import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate as encapsulate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from misfm.data.dicom import list_series, series_at
from misfm.data.readers import read_volume
from misfm.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="the shared test scans are not beside the repository"
)


def write_slice(path, pixels, position, orientation=(1, 0, 0, 0, 1, 0), uid="1.2.3", **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = uid, "CT"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
    dataset.ImageOrientationPatient = [round(float(value), 6) for value in orientation]
    dataset.PixelSpacing = [0.8, 0.5]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder, voxels, step=(0, 0, 3.0), origin=(10, 20, 30), **tags):
    """Slice k lies at origin + k * step; file names and InstanceNumber run against the position."""
    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(voxels):
        position = np.array(origin) + k * np.array(step)
        name = folder / f"{tags.get('uid', '1.2.3')}-{100 - k}"
        write_slice(name, pixels, position, InstanceNumber=100 - k, **tags)
    return folder


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 3000, (5, 6, 7))


def test_slices_are_ordered_by_position(tmp_path, voxels):
    volume = read_volume(write_series(tmp_path / "series", voxels))
    assert volume.data.dtype == np.int16
    assert np.array_equal(volume.data[0], voxels - 1024)
    assert volume.spacing == pytest.approx((3, 0.8, 0.5))
    assert volume.affine @ (2, 3, 4, 1) == pytest.approx((-(10 + 4 * 0.5), -(20 + 3 * 0.8), 30 + 2 * 3, 1))


def test_one_file_stands_for_its_series(tmp_path, voxels):
    folder = write_series(tmp_path / "series", voxels)
    write_series(folder, voxels[:3] // 2, uid="9.9")
    volume = read_volume(folder / "1.2.3-98")
    assert np.array_equal(volume.data[0], voxels - 1024)
    assert read_volume(folder / "9.9-98").shape == (3, 6, 7)
    with pytest.raises(DataError, match="2 DICOM series"):
        read_volume(folder)
    found = list_series(folder.iterdir())
    assert [len(one.files) for one in found.series] == [5, 3]
    assert not found.damaged


def test_rotated_orientation_keeps_positions(tmp_path, voxels):
    row, column = np.array([0, 0.6, 0.8]), np.array([-1.0, 0, 0])
    normal = np.cross(row, column)
    folder = write_series(tmp_path / "series", voxels, 2.0 * normal, orientation=(*row, *column))
    volume = read_volume(folder)
    lps = np.array([10, 20, 30]) + 3 * 2.0 * normal + 2 * 0.8 * column + 5 * 0.5 * row
    assert volume.data[0, 3, 2, 5] == voxels[3, 2, 5] - 1024
    assert (volume.affine @ (3, 2, 5, 1))[:3] == pytest.approx(lps * (-1, -1, 1), abs=1e-4)


def test_a_tilted_gantry_is_straightened(tmp_path):
    # A bright column stands upright in the patient; a tilted scanner sees it move from slice to slice.
    voxels = np.full((6, 20, 9), 24)
    for k in range(6):
        voxels[k, 15 - 2 * k, 4] = 2024
    folder = write_series(tmp_path / "series", voxels, step=(0, 1.6, 3.0))
    volume = read_volume(folder)
    at = np.argwhere(volume.data[0] == 1000)
    assert len(at) == 6
    for d, h, w in at:
        x, y, z, _ = volume.affine @ (d, h, w, 1)
        assert (x, y) == pytest.approx((-(10 + 4 * 0.5), -(20 + 15 * 0.8)))
        assert z == pytest.approx(30 + 3 * d)
    cosines = volume.affine[:3, :3] / volume.spacing
    assert cosines.T @ cosines == pytest.approx(np.eye(3), abs=1e-6)


def remove_one(folder):
    (folder / "1.2.3-98").unlink()


def repeat_one(folder):
    write_slice(folder / "again", np.zeros((6, 7)), (10, 20, 36))


def turn_one(folder):
    (folder / "1.2.3-98").unlink()
    write_slice(folder / "1.2.3-98", np.zeros((6, 7)), (10, 20, 36), (1, 0, 0, 0, 0, 1))


def damage_one(folder):
    path = folder / "1.2.3-98"
    path.write_bytes(path.read_bytes()[:-10])


def damage_header(folder):
    (folder / "1.2.3-98").write_bytes(b"\0" * 128 + b"DICM" + b"\xff\xfe\x00\xe0" * 5)


def lose_position(folder):
    change_one(folder, lambda dataset: delattr(dataset, "ImagePositionPatient"))


def lose_columns(folder):
    change_one(folder, lambda dataset: delattr(dataset, "Columns"))


def shorten_spacing(folder):
    change_one(folder, lambda dataset: setattr(dataset, "PixelSpacing", "0.8"))


def garble_spacing(folder):
    path = folder / "1.2.3-98"
    path.write_bytes(path.read_bytes().replace(b"0.8\\0.5 ", b"a.b\\c.d "))


def change(path, how):
    dataset = pydicom.dcmread(path)
    how(dataset)
    dataset.save_as(path)


def change_one(folder, how):
    change(folder / "1.2.3-98", how)


def keep_one(folder):
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def turn_into_a_point(folder):
    for path in folder.iterdir():
        change(path, lambda dataset: setattr(dataset, "ImageOrientationPatient", [0, 0, 0, 0, 1, 0]))


def promise_more(folder):
    change_one(folder, lambda dataset: [setattr(dataset, side, 65_535) for side in ("Rows", "Columns")])


def promise_many_frames(folder):
    change_one(folder, lambda dataset: setattr(dataset, "NumberOfFrames", 2_000_000_000))


def promise_frames_twice(folder):
    change_one(folder, lambda dataset: setattr(dataset, "NumberOfFrames", [2, 3]))


def spread_out(folder):
    for path in folder.iterdir():
        change(path, lambda dataset: setattr(dataset, "PixelSpacing", [0.8, 3e38]))


def tilt_far(folder):
    for k, path in enumerate(sorted(folder.iterdir())):
        change(path, lambda dataset, k=k: setattr(dataset, "ImagePositionPatient", [1e6 * k, 0, 3 * k]))


FAULTS = {
    turn_into_a_point: "1.2.3-[0-9]+ has a singular ImageOrientationPatient",
    promise_more: "differs in size",
    promise_many_frames: "1.2.3-98 is a multi-frame DICOM file",
    promise_frames_twice: "1.2.3-98 cannot be read",
    spread_out: "series has a spacing of 3e[+]38 mm by its header",
    tilt_far: "as if the gantry had been tilted by 90.0 degrees, which none is",
    remove_one: "6.00 mm apart where 3.00 mm is usual",
    repeat_one: "same place",
    turn_one: "6.00 mm apart where 3.00 mm is usual",
    damage_one: "1.2.3-98 cannot be read",
    damage_header: "1.2.3-99 and 1.2.3-97 are 6.00 mm apart",
    lose_position: "ImagePositionPatient is missing",
    lose_columns: "1.2.3-98 is no slice of a 3D scan: its Columns is missing or damaged",
    shorten_spacing: "1.2.3-98 is no slice of a 3D scan: its PixelSpacing is missing or damaged",
    garble_spacing: "1.2.3-98 cannot be read",
    keep_one: "2D image",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_series_with_a_fault_is_refused(tmp_path, voxels, fault):
    folder = write_series(tmp_path / "series", voxels)
    fault(folder)
    with pytest.raises(DataError, match=FAULTS[fault]) as error:
        read_volume(folder)
    assert str(folder) in str(error.value)


def test_a_modality_of_several_values_is_no_hint(tmp_path, voxels):
    folder = write_series(tmp_path / "series", voxels, Modality=["CT", "OT"])
    found = list_series(folder.iterdir())
    assert [one.modality for one in found.series] == [None]
    assert not found.damaged


def test_the_same_image_under_two_names_is_one_slice(tmp_path, voxels):
    folder = write_series(tmp_path / "series", voxels)
    (folder / "copy").write_bytes((folder / "1.2.3-98").read_bytes())
    assert read_volume(folder).shape == (5, 6, 7)


def test_a_folder_without_dicom(tmp_path):
    with pytest.raises(DataError, match="holds no DICOM"):
        read_volume(tmp_path)


@needs_shared
def test_real_compressed_series_fits_its_label_map(to_grid):
    volume = read_volume(SHARED / "abdomen_ct_j2k")
    label = read_volume(SHARED / "abdomen_ct_j2k_seg.nii.gz")
    assert volume.shape == (20, 512, 512)
    # The label map's file runs the other way along H, so only positions can bring the two together.
    organs = to_grid(label, volume).data
    liver, aorta = volume.data[organs == 5], volume.data[organs == 52]
    assert 60 < np.median(liver) < 130
    assert 120 < np.median(aorta) < 250
    assert np.isin(np.unique(label.data), np.unique(organs)).all()


@needs_shared
def test_real_tilted_series_with_uneven_gaps_and_rotated_series():
    scan = series_at(SHARED / "head_ct_tilt_gap")
    volume = scan.read()
    assert volume.spacing == pytest.approx((4.02, 0.488, 0.488), abs=0.01)
    uneven, tilted = scan.notes
    assert uneven.startswith("uneven gaps between slices, 1.08 to 7.00 mm")
    assert tilted.startswith("the gantry was tilted by 18.5 degrees")
    volume = read_volume(SHARED / "head_t1_rotated_iop")
    assert volume.orientation == "SAR"
    assert volume.affine @ (0, 0, 0, 1) == pytest.approx((-82.1807, -122.163, -24.707, 1))


def encapsulate(path, frame, syntax, side):
    """Make a slice say that its pixels are ``side`` x ``side`` and packed as ``frame``."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Rows = dataset.Columns = side
    dataset.PixelData = encapsulate_frames([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)


SIDES = (60_000).to_bytes(4, "big") * 2
J2K = bytes.fromhex("ff4fff51002f0000") + SIDES + bytes(24) + bytes.fromhex("00010f0101") + bytes(200)
JPEG = bytes.fromhex("ffd8ffe000040000ffc0000b08") + (60_000).to_bytes(2, "big") * 2 + b"\1" + bytes(200)


@pytest.mark.parametrize(
    ("frame", "syntax", "side"),
    [
        (J2K, JPEG2000Lossless, 64),
        (JPEG, JPEGBaseline8Bit, 64),
        (bytes(200), RLELossless, 5_000),
        (bytes(200), ExplicitVRLittleEndian, 5_000),
    ],
)
def test_pixels_that_promise_more_than_they_are(tmp_path, voxels, frame, syntax, side):
    folder = write_series(tmp_path / "series", voxels)
    for path in folder.iterdir():
        if syntax is ExplicitVRLittleEndian:
            change(path, lambda dataset: [setattr(dataset, name, side) for name in ("Rows", "Columns")])
        else:
            encapsulate(path, frame, syntax, side)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=f"1.2.3-[0-9]+ cannot be read: its header promises {side} x {side}"
        ):
            read_volume(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_more_bits_than_a_pixel_has_never_reach_a_decoder(tmp_path, voxels):
    """GDCM took 81 bits from the header of JPEG 2000, and crashed."""
    folder = write_series(tmp_path / "series", voxels)
    small = J2K.replace(SIDES, (6).to_bytes(4, "big") * 2).replace(b"\0\1\x0f\1\1", b"\0\1\x50\1\1")
    for path in folder.iterdir():
        encapsulate(path, small, JPEG2000Lossless, 6)
    with pytest.raises(DataError, match=r"not packed as JPEG 2000 .* of up to 16 bits a pixel"):
        read_volume(folder)


def test_a_deflated_file_is_read_and_a_bomb_of_one_is_not_unpacked(tmp_path, voxels, monkeypatch):
    folder = write_series(tmp_path / "series", voxels)
    whole = read_volume(folder)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(read_volume(folder).data, whole.data)
    monkeypatch.setattr("misfm.data.dicom.files._MOST_DEFLATED", 100)
    with pytest.raises(DataError, match="unpacks to more than any slice needs"):
        read_volume(folder)
