"""Segmentations of 3D Slicer: voxels that every reader of NRRD finds in place, with names of segments."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from misfm.data.readers import read_volume, stem
from misfm.data.scan import ScanSource
from misfm.data.writers import WRITERS, LabelledScan
from misfm.volume import Volume

AFFINE = np.array([[0, -0.6, 2.4, 5], [0, -1.2, -1.2, 7], [-3.0, 0, 0, 90], [0, 0, 0, 1]])
ORGANS = {"left kidney": (1,), "liver": (7,), "bright": (9,)}
REGIONS = {"whole": (1, 7), "core": (7,), "other": (3,)}


def write(folder, labels):
    data = np.zeros((1, 4, 5, 6), np.uint8)
    data[0, 1:3, 2:5, 3] = 1
    data[0, 2, 3, 1:4] = 7
    writer = WRITERS.get("nrrd")()
    path = folder / f"case{writer.suffix}"
    volume = Volume(data, AFFINE)
    writer.write(path, LabelledScan(volume, labels, ScanSource(folder / "scan.nii.gz", "scan"), {}))
    return path, volume, writer.values(labels)


def keys(path):
    header = path.read_bytes().partition(b"\n\n")[0].decode()
    return dict(line.split(":=", 1) for line in header.splitlines() if ":=" in line)


def test_the_voxels_read_back_in_their_place(tmp_path):
    path, volume, values = write(tmp_path, ORGANS)
    again = read_volume(path)
    assert np.array_equal(again.data, volume.data)
    assert again.affine == pytest.approx(AFFINE, abs=1e-9)
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.data[0])
    assert values == {"left kidney": 1, "liver": 7, "bright": 9}
    assert stem(path) == "case", "so that misfm evaluate finds its reference"


def test_slicer_finds_names_values_extents_and_codes_of_segments(tmp_path):
    path, _, _ = write(tmp_path, ORGANS)
    image = sitk.ReadImage(str(path))
    found = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    assert [found[f"Segment{number}_Name"] for number in range(3)] == list(ORGANS)
    assert [found[f"Segment{number}_LabelValue"] for number in range(3)] == ["1", "7", "9"]
    assert [found[f"Segment{number}_Extent"] for number in range(3)] == [
        "3 3 2 4 1 2",
        "1 3 3 3 2 2",
        "0 -1 0 -1 0 -1",
    ]
    assert len({found[f"Segment{number}_Color"] for number in range(3)}) == 3
    assert "~SCT^64033007^Kidney~SCT^7771000^Left~" in found["Segment0_Tags"]
    assert "~99MISFM^bright^bright~^^~" in found["Segment2_Tags"]
    assert found["Segmentation_MasterRepresentation"] == "Binary labelmap"


def test_regions_that_overlap_lie_in_layers(tmp_path):
    path, volume, values = write(tmp_path, REGIONS)
    assert values == {"whole": 1, "core": 2, "other": 3}
    found = keys(path)
    assert [found[f"Segment{number}_Layer"] for number in range(3)] == ["0", "1", "0"]
    layers = np.frombuffer(gzip.decompress(path.read_bytes().partition(b"\n\n")[2]), np.uint8)
    layers = layers.reshape(*volume.shape, 2)
    for name, of in REGIONS.items():
        number = list(REGIONS).index(name)
        layer = layers[..., int(found[f"Segment{number}_Layer"])]
        assert np.array_equal(layer == values[name], np.isin(volume.data[0], of)), name
    header = path.read_bytes().partition(b"\n\n")[0].decode()
    assert "sizes: 2 6 5 4" in header
    assert "kinds: list domain domain domain" in header
    assert "space directions: none (" in header


def test_the_same_label_map_is_the_same_file(tmp_path):
    (tmp_path / "b").mkdir()
    assert write(tmp_path, ORGANS)[0].read_bytes() == write(tmp_path / "b", ORGANS)[0].read_bytes()
