"""Label objects of DICOM, SEG and RTSTRUCT, as label maps on the grid of the series that they refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import readable
from misfm.data.dicom.contours import fill
from misfm.data.dicom.files import quietly, read_header
from misfm.data.dicom.frames import Frame, frames_of
from misfm.data.dicom.grid import Grid, filled, nearest
from misfm.data.dicom.pixels import Pixels
from misfm.data.dicom.references import reference_of
from misfm.data.dicom.series import DicomSeries
from misfm.errors import DataError
from misfm.text import one_line
from misfm.volume import Volume

_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_MOST = 1 << 12
"""Structures that one object may have."""
_ALIGNED = 0.1
"""Of a gap between slices: how far planes of equal stacks may lie apart."""
_TOGETHER = 0.08
"""Of a gap between slices: how far contours of one plane may, as coordinates are rounded."""
_FLAT = 0.5
"""Of a gap between slices: how far the corners of one contour may."""


@dataclass(eq=False)
class _Structure:
    """A named mask: parts of planes, each with the planes of the label map it lies in and its first pixel."""

    name: str
    pieces: list[tuple[list[int], tuple[int, int], NDArray[np.bool_]]] = field(default_factory=list)

    def add(self, planes: list[int], mask: NDArray[np.bool_]) -> None:
        """Keep the part of a mask (H, W) that is not empty."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if len(rows) and planes:
            part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
            self.pieces.append((planes, (int(rows[0]), int(columns[0])), part))

    @property
    def size(self) -> int:
        return sum(len(planes) * int(np.count_nonzero(part)) for planes, _, part in self.pieces)


@quietly
def read_labels(
    path: Path, image: DicomSeries, *, notes: list[str] | None = None
) -> tuple[Volume, dict[int, str]]:
    """Read a SEG or RTSTRUCT as a label map of a series.

    Where structures overlap, the smaller one keeps its voxels: an outline of the whole body hides nothing.

    Args:
        path: of the object.
        image: the series that it refers to.
        notes: what was left out or decided is added here, clauses that name no file.

    Returns:
        Label map (1, D, H, W), uint8 or int16, on the grid that the series is read on, 0 the background; and
        the name of each other value, from 1 on in the order of the object.

    Raises:
        DataError: it is damaged, is no such object, refers to another series, or has nothing in it.
    """
    notes = [] if notes is None else notes
    grid = image.grid()
    structures = _structures_of(path, image, grid, notes)
    empty = [one.name for one in structures if not one.pieces]
    if len(empty) == len(structures):
        raise DataError(f"{path} marks nothing in the series in {image.files[0].parent}; give its own.")
    if empty:
        notes.append(f"{len(empty)} structures without a voxel in the series were left out")
    return _painted([one for one in structures if one.pieces], grid, notes)


@quietly
def label_names(path: Path, image: DicomSeries) -> list[str]:
    """Return the names of the structures that have voxels in a series, as :func:`read_labels` does.

    Raises:
        DataError: see there; an object that has nothing in the series has no names.
    """
    structures = _structures_of(path, image, image.grid(), [])
    return list(_distinct([one.name for one in structures if one.pieces]).values())


def _structures_of(path: Path, image: DicomSeries, grid: Grid, notes: list[str]) -> list[_Structure]:
    """The structures of a SEG or RTSTRUCT, those without a voxel, too."""
    reference = reference_of(path)
    if reference.series_uids and image.uid not in reference.series_uids:
        raise DataError(
            f"{path} refers to another series than that in {image.files[0].parent}; give its own."
        )
    spaces = reference.frame_of_reference, image.frame_of_reference
    if all(spaces) and spaces[0] != spaces[1]:
        notes.append(
            "the label object names the series, but another frame of reference: look whether its structures "
            "lie where they should"
        )
    header = read_header(path)
    if "ROIContourSequence" in header or header.get("SOPClassUID") == _CONTOURS:
        return _of_contours(path, header, grid, notes)
    if "SegmentSequence" in header:
        return _of_segments(path, header, grid)
    raise DataError(f"{path} is neither SEG nor RTSTRUCT; give a label object of DICOM.")


def _segments(header: Any) -> dict[int, _Structure]:
    """Structures of a SEG by number, still empty."""
    found = {
        int(one.SegmentNumber): _Structure(_clean(one.get("SegmentLabel"), f"segment {number}"))
        for number, one in enumerate(header.get("SegmentSequence") or (), start=1)
    }
    found.pop(0, None)  # the background of a LABELMAP
    return found


def _drawn_names(header: Any) -> dict[int, str]:
    """Names of the structures of an RTSTRUCT by number."""
    return {
        int(one.ROINumber): _clean(one.get("ROIName"), f"structure {int(one.ROINumber)}")
        for one in header.get("StructureSetROISequence") or ()
    }


def _painted(structures: Sequence[_Structure], grid: Grid, notes: list[str]) -> tuple[Volume, dict[int, str]]:
    """A label map with structures in it, the largest first."""
    labels = np.zeros(grid.shape, np.uint8 if len(structures) <= 255 else np.int16)
    names = _distinct([one.name for one in structures])
    shared = 0
    for value in sorted(names, key=lambda value: structures[value - 1].size, reverse=True):
        for planes, (row, column), part in structures[value - 1].pieces:
            for plane in planes:
                there = labels[plane, row : row + part.shape[0], column : column + part.shape[1]]
                shared += int(np.count_nonzero(there[part]))
                there[part] = value
    if shared:
        notes.append(f"{shared} voxels are in several structures and were given to the smallest")
    return Volume(labels[None], grid.affine), names


def _distinct(wanted: Sequence[str]) -> dict[int, str]:
    """Names by value, from 1 on; those that are there twice get a number."""
    names: dict[int, str] = {}
    for value, name in enumerate(wanted, start=1):
        unused, number = name, 1
        while unused in names.values():
            number += 1
            unused = f"{name} {number}"
        names[value] = unused
    return names


def _of_segments(path: Path, header: Any, grid: Grid) -> list[_Structure]:
    """Structures of a SEG; of fractional ones what is half there or more."""
    with readable(path):
        kind = str(header.get("SegmentationType") or "BINARY")
        structures = _segments(header)
        highest = int(header.get("MaximumFractionalValue") or 255)
        least = max(1, (highest + 1) // 2) if kind == "FRACTIONAL" else 1
        numbers = None if kind == "LABELMAP" else _segment_numbers(path, header)
    _check_number(path, len(structures))
    frames, pixels = frames_of(path, header), Pixels()
    gap = float(np.linalg.norm(grid.affine[:3, 0]))
    apart = _distance(path, header, gap) / gap
    planes = _planes_of(path, frames, numbers or [0] * len(frames), apart, grid)
    for frame, there in zip(frames, planes, strict=True):
        if not there:
            continue
        values = pixels.read(frame)
        if numbers is None:
            for value in np.unique(values):
                if int(value) in structures:
                    structures[int(value)].add(there, _onto(values == value, frame, there[0], grid))
        elif numbers[frame.index] in structures:
            structures[numbers[frame.index]].add(there, _onto(values >= least, frame, there[0], grid))
    return list(structures.values())


def _segment_numbers(path: Path, header: Any) -> list[int]:
    """Which segment each frame is of."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    numbers = []
    for frame in header.get("PerFrameFunctionalGroupsSequence") or ():
        told = [one.get("SegmentIdentificationSequence") for one in (frame, *shared)]
        first = next((sequence[0] for sequence in told if sequence), None)
        if first is None:
            raise DataError(f"{path} does not say which segment each of its frames is of; export it again.")
        numbers.append(int(first.ReferencedSegmentNumber))
    return numbers


def _distance(path: Path, header: Any, gap: float) -> float:
    """Millimetres from one plane of a SEG to the next; where untold, their thickness or the series' gap."""
    groups = [
        group
        for tag in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for group in list(header.get(tag) or ())[:1]
    ]
    told = {"SpacingBetweenSlices": 0.0, "SliceThickness": 0.0}
    with readable(path):
        for measures in (one for group in groups for one in group.get("PixelMeasuresSequence") or ()):
            for tag, known in told.items():
                value = float(measures.get(tag) or 0)
                told[tag] = known or (value if np.isfinite(value) and value > 0 else 0.0)
    return told["SpacingBetweenSlices"] or max(told["SliceThickness"], gap)


def _planes_of(
    path: Path, frames: Sequence[Frame], numbers: Sequence[int], apart: float, grid: Grid
) -> list[list[int]]:
    """The planes of the label map that each frame of a SEG fills; none for one outside of the series.

    The frames of a segment lie in slices of the series, in planes of its even grid, or in planes of their
    own: then each plane takes the nearest within half of their distance, which frames alone do not tell,
    as empty ones may be left out.
    """
    first = grid.frames[0]
    for frame in frames:
        if abs(float(frame.normal @ first.normal)) < 0.999:
            raise DataError(f"{path} has planes of another direction than its series; resample it to those.")
    gap = float(np.linalg.norm(grid.affine[:3, 0]))
    depths = np.array([float((frame.position - first.position) @ first.normal) for frame in frames]) / gap
    planes: list[list[int]] = [[] for _ in frames]
    for number in set(numbers):
        which = np.flatnonzero(np.array(numbers) == number)
        for at, found in zip(which, _nearest_planes(depths[which], apart, grid), strict=True):
            planes[at] = found
    return planes


def _nearest_planes(depths: NDArray[np.float64], apart: float, grid: Grid) -> list[list[int]]:
    """The planes that each frame of one segment fills; depths, and how far planes are apart, in voxels."""
    whole = np.arange(grid.shape[0], dtype=float)
    for stack in (grid.depths, whole):
        places = nearest(depths, stack)
        if (np.abs(depths - stack[places]) <= _ALIGNED).all():
            return [filled(stack, int(at), whole) for at in places]
    own = np.unique(np.round(depths, 3))
    reach = min([apart, *np.diff(own)]) / 2 + 1e-3
    places = nearest(whole, own)
    within = np.abs(whole - own[places]) <= reach
    return [np.flatnonzero(within & (np.abs(own[places] - depth) < 1e-3)).tolist() for depth in depths]


def _onto(mask: NDArray[np.bool_], frame: Frame, plane: int, grid: Grid) -> NDArray[np.bool_]:
    """A mask of one frame on the pixels (H, W) of the label map, by the nearest pixel."""
    height, width = grid.shape[1:]
    lps = grid.affine * np.array([-1.0, -1.0, 1.0, 1.0])[:, None]
    start = (lps @ (plane, 0, 0, 1))[:3] - frame.position
    down, right = lps[:3, 1], lps[:3, 2]
    axes = np.stack([frame.column / frame.spacing[0], frame.row / frame.spacing[1]])
    place, turn = axes @ start, axes @ np.stack([down, right], axis=1)
    h, w = np.arange(height)[:, None], np.arange(width)[None]
    if np.abs(turn[[0, 1], [1, 0]]).max() * max(height, width) < 0.01:  # the usual case
        rows = np.rint(place[0] + turn[0, 0] * h).astype(np.int64)
        columns = np.rint(place[1] + turn[1, 1] * w).astype(np.int64)
    else:
        rows = np.rint(place[0] + turn[0, 0] * h + turn[0, 1] * w).astype(np.int64)
        columns = np.rint(place[1] + turn[1, 0] * h + turn[1, 1] * w).astype(np.int64)
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    taken = mask[np.clip(rows, 0, mask.shape[0] - 1), np.clip(columns, 0, mask.shape[1] - 1)]
    return np.asarray(taken & inside)


def _of_contours(path: Path, header: Any, grid: Grid, notes: list[str]) -> list[_Structure]:
    """Structures of an RTSTRUCT, the contours of a plane taken together: one within another is a hole."""
    with readable(path):
        names = _drawn_names(header)
        sequences = [
            (int(one.ReferencedROINumber), list(one.get("ContourSequence") or ()))
            for one in header.get("ROIContourSequence") or ()
        ]
    _check_number(path, len(sequences))
    drawn = [(number, [_corners(path, one, grid) for one in contours]) for number, contours in sequences]
    whole = np.arange(grid.shape[0], dtype=float)
    stack = _stack_of([corners for _, contours in drawn for corners in contours], grid.depths, whole)
    structures, left_out, twice, sparse = [], 0, 0, 0
    for number, contours in drawn:
        structure = _Structure(names.get(number, f"structure {number}"))
        by_plane: dict[int, list[NDArray[np.float64]]] = {}
        for corners in contours:
            at = _plane(corners, stack)
            if at is None:
                left_out += 1
            else:
                by_plane.setdefault(at, []).append(corners)
        for at, close in by_plane.items():
            together = _nearest_together(close, float(stack[at]))
            polygons = _unlike(together)
            twice += len(together) - len(polygons)
            structure.add(filled(stack, at, whole), fill(polygons, grid.shape[1:]))
        structures.append(structure)
        sparse += len(by_plane) > 2 and float(np.median(np.diff(sorted(by_plane)))) > 1
    if sparse:
        notes.append(f"{sparse} structures are drawn on some slices only: those between stay empty")
    if left_out:
        notes.append(f"{left_out} contours that are open, or lie in no slice of the series, were left out")
    if twice:
        notes.append(f"{twice} contours were there twice and are taken once")
    return structures


def _nearest_together(contours: Sequence[NDArray[np.float64]], depth: float) -> list[NDArray[np.float64]]:
    """Contours (N, 2) of the plane nearest to a slice; they may be drawn more densely than slices lie."""
    depths = np.array([float(corners[:, 0].mean()) for corners in contours])
    nearest_one = depths[np.abs(depths - depth).argmin()]
    return [
        corners[:, 1:]
        for corners, at in zip(contours, depths, strict=True)
        if abs(at - nearest_one) <= _TOGETHER
    ]


def _unlike(polygons: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Leave out polygons that are there twice, from whichever corner and in whichever direction."""
    unique: dict[frozenset[frozenset[tuple[float, ...]]], NDArray[np.float64]] = {}
    for polygon in polygons:
        corners = [tuple(corner) for corner in (np.round(polygon, 3) + 0.0).tolist()]
        edges = zip(corners, [*corners[1:], corners[0]], strict=True)
        unique.setdefault(frozenset(frozenset(edge) for edge in edges if edge[0] != edge[1]), polygon)
    return list(unique.values())


def _stack_of(
    contours: Sequence[NDArray[np.float64]], slices: NDArray[np.float64], whole: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The slices of a series, or the planes of its even grid where contours were drawn on those."""
    middles = np.array([float(corners[:, 0].mean()) for corners in contours if len(corners) > 2])
    fitting = [
        np.count_nonzero(np.abs(middles - stack[nearest(middles, stack)]) <= _ALIGNED)
        for stack in (slices, whole)
    ]
    return whole if fitting[1] > fitting[0] else slices


def _corners(path: Path, contour: Any, grid: Grid) -> NDArray[np.float64]:
    """Corners (N, 3) of a contour in voxels of the label map; none of what is no closed contour."""
    with readable(path):
        kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR")
        value = contour.get_item("ContourData").value if "ContourData" in contour else b""
        texts = value.split(b"\\") if isinstance(value, bytes) else value
        numbers = np.array([float(text) for text in texts if text != b""], dtype=float)
    if len(numbers) % 3 or not np.isfinite(numbers).all():
        raise DataError(f"{path} has a contour whose corners are damaged; export it again.")
    points = numbers.reshape(-1, 3) if kind.startswith("CLOSED") else np.empty((0, 3))
    to_voxels = np.linalg.inv(grid.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray((np.c_[points, np.ones(len(points))] @ to_voxels.T)[:, :3])


def _plane(corners: NDArray[np.float64], depths: NDArray[np.float64]) -> int | None:
    """The slice that a contour lies in, if it lies in one."""
    if len(corners) < 3:
        return None
    along = corners[:, 0]
    middle = float(along.mean())
    at = int(np.abs(depths - middle).argmin())
    gaps = np.diff(depths[max(0, at - 1) : at + 2])
    reach = float(gaps.max()) * 0.5 + 1e-3
    is_flat = float(np.ptp(along)) <= _FLAT * float(gaps.min())
    return at if is_flat and abs(middle - float(depths[at])) <= reach else None


def _clean(name: Any, otherwise: str) -> str:
    return one_line(str(name or "")).strip() or otherwise


def _check_number(path: Path, number: int) -> None:
    if number > _MOST:
        raise DataError(f"{path} has {number} structures; {_MOST} are the most that can be read.")
