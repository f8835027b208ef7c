"""SEG and RTSTRUCT: label maps on the very grid of their series, with the names in the object."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest

from misfm.data.dicom import list_series, pair, read_labels, series_at
from misfm.data.dicom.contours import fill
from misfm.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from odd_dicom_files import ORIGIN, SPACING, write_enhanced, write_rtstruct, write_seg, write_series

NAMES = {1: "Left kidney", 3: "Liver"}


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 4000, (7, 20, 16)).astype(np.uint16)


@pytest.fixture
def labels():
    labels = np.zeros((7, 20, 16), np.uint8)
    labels[1:4, 3:9, 2:7] = 1
    labels[2:6, 10:17, 5:14] = 3
    labels[5, 0, 0] = 1
    return labels


def corners(slice_number, *hw, depths=None):
    """LPS millimetres of (h, w) in a slice."""
    depth = 3.0 * slice_number if depths is None else depths[slice_number]
    points = [(ORIGIN[0] + w * SPACING[1], ORIGIN[1] + h * SPACING[0], ORIGIN[2] + depth) for h, w in hw]
    return np.array(points)


def square(slice_number, start, stop, **options):
    return corners(slice_number, (start, start), (start, stop), (stop, stop), (stop, start), **options)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_seg_of_any_kind_reads_back_exactly(tmp_path, stored, labels, kind):
    folder = write_series(tmp_path / "ct", stored)
    file = write_seg(tmp_path / "seg.dcm", folder, labels, NAMES, kind=kind)
    series = series_at(folder)
    volume, names = read_labels(file, series)
    scan = series.read()
    assert names == {1: "Left kidney", 2: "Liver"}
    assert np.array_equal(volume.data[0], np.array([0, 1, 0, 2])[labels])
    assert np.array_equal(volume.affine, scan.affine)
    assert volume.data.dtype == np.uint8


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (14, 17), (13, 11)])
def test_a_seg_whose_images_end_within_a_byte(tmp_path, rows, columns):
    generator = np.random.default_rng(0)
    folder = write_series(tmp_path / "ct", generator.integers(0, 4000, (5, rows, columns)).astype(np.uint16))
    labels = generator.integers(0, 2, (5, rows, columns)).astype(np.uint8)
    seg = write_seg(tmp_path / "seg.dcm", folder, labels, {1: "organ"})
    assert np.array_equal(read_labels(seg, series_at(folder))[0].data[0], labels)


def test_a_seg_of_an_enhanced_scan(tmp_path, stored, labels):
    file = write_enhanced(tmp_path / "ct" / "ct.dcm", stored)
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "ct", labels, NAMES)
    volume, _ = read_labels(seg, series_at(file))
    assert np.array_equal(volume.data[0] > 0, labels > 0)


def test_a_seg_of_slices_that_were_evened_out(tmp_path, stored, labels):
    depths = [0, 3, 6, 9, 12, 18, 24]
    folder = write_series(tmp_path / "ct", stored, depths=depths)
    seg = write_seg(tmp_path / "seg.dcm", folder, labels, {1: "kidney"})
    series = series_at(folder)
    volume, _ = read_labels(seg, series)
    assert volume.shape == series.read().shape == (9, 20, 16)
    for plane, nearest in enumerate([0, 1, 2, 3, 4, (4, 5), 5, (5, 6), 6]):
        choices = nearest if isinstance(nearest, tuple) else (nearest,)
        assert any(np.array_equal(volume.data[0, plane], labels[k] == 1) for k in choices)


def test_a_seg_of_a_tilted_gantry_moves_with_its_slices(tmp_path, stored, labels):
    tilt = 2 * SPACING[0] / 3  # two pixels a slice
    folder = write_series(tmp_path / "ct", stored, tilt=tilt)
    seg = write_seg(tmp_path / "seg.dcm", folder, labels, {3: "liver"})
    series = series_at(folder)
    volume, _ = read_labels(seg, series)
    assert volume.shape == series.read().shape
    for k in range(7):
        assert np.array_equal(volume.data[0, k, 2 * k : 2 * k + 20], labels[k] == 3)


def test_a_hole_within_a_contour_and_a_contour_within_the_hole(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    rings = [square(2, 1.5, 14.5), square(2, 4.5, 11.5), square(2, 6.5, 9.5)]
    file = write_rtstruct(tmp_path / "rs.dcm", {"ring": rings})
    volume, names = read_labels(file, series_at(folder))
    expected = np.zeros((7, 20, 16), np.uint8)
    expected[2, 2:15, 2:15] = 1
    expected[2, 5:12, 5:12] = 0
    expected[2, 7:10, 7:10] = 1
    assert names == {1: "ring"}
    assert np.array_equal(volume.data[0], expected)


def test_contours_on_the_even_grid_of_an_uneven_series(tmp_path, stored):
    """As on a scan that somebody evened out before drawing."""
    folder = write_series(tmp_path / "ct", stored, depths=[0, 3, 6, 9, 12, 18, 24])
    contours = [square(k, 1.5, 9.5) for k in (4, 5, 6)]
    volume, _ = read_labels(write_rtstruct(tmp_path / "rs", {"organ": contours}), series_at(folder))
    assert volume.data.any(axis=(0, 2, 3)).tolist() == [False] * 4 + [True] * 3 + [False] * 2


def test_the_smaller_of_two_structures_keeps_what_they_share(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    body = [square(k, -0.5, 15.5) for k in range(7)]
    file = write_rtstruct(tmp_path / "rs.dcm", {"cord": [square(3, 5.5, 7.5)], "External": body, "none": []})
    notes = []
    volume, names = read_labels(file, series_at(folder), notes=notes)
    assert names == {1: "cord", 2: "External"}
    assert (volume.data == 1).sum() == 4
    assert (volume.data == 2).sum() == 7 * 16 * 16 - 4
    assert any("4 voxels are in several structures" in note for note in notes)
    assert any("1 structures without a voxel" in note for note in notes)


def test_contours_off_the_slices_are_told(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    steep = corners(1, (1, 1), (1, 9), (9, 9))
    steep[1, 2] += 9
    far = square(0, 1.5, 9.5) + np.array([0, 0, 500])
    every_second = [square(k, 1.5, 9.5) for k in (0, 2, 4, 6)]
    file = write_rtstruct(tmp_path / "rs.dcm", {"organ": [*every_second, steep, far]})
    notes = []
    volume, _ = read_labels(file, series_at(folder), notes=notes)
    assert volume.data.any(axis=(0, 2, 3)).tolist() == [True, False] * 3 + [True]
    assert any(note.startswith("2 contours") for note in notes)
    assert any("drawn on some slices only" in note for note in notes)


def test_parts_of_a_slice_whose_depths_differ_by_rounding_are_one_plane(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    shifted = np.array([0, 0, 0.04])
    contours = [square(2, 1.5, 9.5), square(2, 3.5, 5.5) + shifted, square(2, 10.5, 13.5) + shifted]
    volume, _ = read_labels(write_rtstruct(tmp_path / "rs.dcm", {"organ": contours}), series_at(folder))
    assert (volume.data == 1).sum() == (volume.data[0, 2] == 1).sum() == 64 - 4 + 9


def test_contours_drawn_more_densely_than_slices_lie(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    contours = [square(2, 1.5, 9.5 + k) + np.array([0, 0, 0.5 * k]) for k in range(-1, 2)]
    volume, _ = read_labels(write_rtstruct(tmp_path / "rs.dcm", {"organ": contours}), series_at(folder))
    assert (volume.data == 1).sum() == 64


def test_a_contour_that_is_there_twice_is_taken_once(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored)
    one = square(2, 1.5, 9.5)
    file = write_rtstruct(tmp_path / "rs.dcm", {"organ": [one, np.roll(one, 1, axis=0)[::-1]]})
    notes = []
    assert (read_labels(file, series_at(folder), notes=notes)[0].data == 1).sum() == 64
    assert notes == ["1 contours were there twice and are taken once"]


def moved(file, move):
    """Move the planes of a SEG along the normal, by what a function of segment and plane says."""
    one = pydicom.dcmread(file)
    for group in one.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0].ImagePositionPatient
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position[2] = float(position[2]) + move(segment)
    one.save_as(file)
    return file


@pytest.mark.parametrize("told", [True, False])
def test_planes_of_a_seg_off_the_slices_do_not_reach_to_the_next_that_is_not_empty(tmp_path, stored, told):
    folder = write_series(tmp_path / "ct", stored)
    labels = np.zeros((7, 20, 16), np.uint8)
    labels[[1, 5], 3:9, 2:7] = 1
    labels[[1, 5], 12:15, 2:7] = 3
    file = write_seg(tmp_path / "seg.dcm", folder, labels, NAMES)
    one = pydicom.dcmread(file)
    measures = one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 3 if told else None
    one.save_as(file)
    for move in (lambda segment: 0.6, lambda segment: -0.6 * (segment == 1)):  # the second from both
        volume, _ = read_labels(moved(file, move), series_at(folder))
        assert np.array_equal(volume.data[0], np.array([0, 1, 0, 2])[labels])


def test_another_frame_of_reference_is_told(tmp_path, stored):
    folder = write_series(tmp_path / "ct", stored, FrameOfReferenceUID="1.2.44")
    file = write_rtstruct(tmp_path / "rs.dcm", {"organ": [square(2, 1.5, 9.5)]})
    notes = []
    read_labels(file, series_at(folder), notes=notes)
    assert len(notes) == 1
    assert "another frame of reference" in notes[0]


def test_structures_of_one_name_are_told_apart(tmp_path, stored, labels):
    folder = write_series(tmp_path / "ct", stored)
    file = write_seg(tmp_path / "seg.dcm", folder, labels, {1: "node", 3: "node"})
    assert read_labels(file, series_at(folder))[1] == {1: "node", 2: "node 2"}


def test_label_objects_find_their_series(tmp_path, stored, labels):
    ct = write_series(tmp_path / "ct", stored)
    other = write_series(tmp_path / "other", stored, SeriesInstanceUID="1.2.77")
    seg = write_seg(tmp_path / "labels" / "seg", other, labels, NAMES)
    structures = write_rtstruct(tmp_path / "labels" / "rs", {"organ": [square(1, 1.5, 8.5)]})
    lost = write_rtstruct(tmp_path / "labels" / "lost", {"organ": [square(1, 1.5, 8.5)]}, series="1.2.99")
    found = list_series(path for path in tmp_path.rglob("*") if path.is_file())
    (files,) = found.passed.values()
    pairs, alone = pair(files, found.series)
    assert {path: series.files[0].parent for path, series in pairs.items()} == {seg: other, structures: ct}
    assert alone == [lost]
    with pytest.raises(DataError, match="seg refers to another series"):
        read_labels(seg, series_at(ct))


def test_what_is_no_label_object_or_a_damaged_one_is_a_sentence(tmp_path, stored, labels):
    folder = write_series(tmp_path / "ct", stored)
    series = series_at(folder)
    with pytest.raises(DataError, match="is neither SEG nor RTSTRUCT"):
        read_labels(series.files[0], series)
    file = write_rtstruct(tmp_path / "rs.dcm", {"organ": [square(1, 1.5, 8.5)]})
    content = file.read_bytes()
    file.write_bytes(content.replace(b"10.75", b"  nan", 1))
    with pytest.raises(DataError, match=r"rs\.dcm has a contour whose corners are damaged"):
        read_labels(file, series)
    seg = write_seg(tmp_path / "seg.dcm", folder, labels, NAMES)
    seg.write_bytes(seg.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"seg\.dcm cannot be read"):
        read_labels(seg, series)


def inside(polygon, h, w):
    """Whether a point is in a polygon, by counting the edges that a ray to the left crosses."""
    crossings = 0
    for (y0, x0), (y1, x1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if min(y0, y1) <= h < max(y0, y1):
            crossings += x0 + (h - y0) * (x1 - x0) / (y1 - y0) <= w
    return crossings % 2 == 1


@pytest.mark.parametrize("seed", range(4))
def test_filling_is_what_counting_crossings_says(seed):
    generator = np.random.default_rng(seed)
    polygons = [generator.uniform(-4, 20, (number, 2)) for number in (3, 7, 12)]
    mask = fill(polygons, (15, 17))
    for h, w in product(range(15), range(17)):
        assert mask[h, w] == (sum(inside(polygon, h, w) for polygon in polygons) % 2 == 1)


def test_polygons_that_share_an_edge_neither_overlap_nor_leave_a_gap():
    left = np.array([[0, 0], [0, 4], [6, 4], [6, 0]], float)
    right = left + np.array([0, 4])
    both = fill([left], (8, 10)).astype(int) + fill([right], (8, 10))
    assert both.max() == 1
    assert both.sum() == 6 * 8


def test_huge_coordinates_take_no_memory():
    far = np.array([[-1e12, -1e12], [-1e12, 1e12], [1e12, 1e12], [1e12, -1e12]])
    assert fill([far], (5, 6)).all()
