"""The images of a DICOM series on one even, upright grid; what had to be done for that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from misfm.data.checks import LPS_TO_RAS, MAX_SHEAR, check_shape, check_spacing, make_volume
from misfm.data.dicom.frames import Frame
from misfm.data.dicom.pixels import Pixels
from misfm.errors import DataError
from misfm.volume import Affine, Shape, Volume

_UNEVEN = 0.02
"""Gaps between slices may differ by this part of the usual gap: header numbers are rounded decimals."""
_WIDE = 1.5
"""Times the usual gap from which on a gap is looked at: slices may be missing in it."""
_HOLE = 3.0
"""Times the usual gap from which on nothing is filled in, whether slices were lost or never taken."""
_STEEPEST = 45.0
"""Degrees by which a gantry may be tilted; what lies further apart is several scans."""
_STRAIGHT = 0.5
"""Pixels, or millimetres where these are more, by which slices of one stack may lie beside a line: places
are written in rounded decimals."""
_SAME_PLACE = 1e-3
"""Millimetres."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a series lie.

    Attributes:
        frames: the images, in order along their normal.
        shape: of the volume (D, H, W).
        affine: of the volume, voxel to RAS millimetres.
        depths: (N,) place of each image along D, in voxels of the volume.
        shifts: (N, 2) how far each image is displaced within its plane against a stack along the normal, in
            pixels along H and W; None where they are not moved.
        start: (2,) first pixel along H and W of a grid wide enough for all images.
    """

    frames: tuple[Frame, ...]
    shape: Shape
    affine: Affine
    depths: NDArray[np.float64]
    shifts: NDArray[np.float64] | None
    start: NDArray[np.float64]

    @property
    def is_even(self) -> bool:
        """Whether every image is a slice of the volume."""
        return np.array_equal(self.depths, np.arange(self.shape[0]))


def read_frames(frames: Sequence[Frame], folder: Path, modality: str | None, notes: list[str]) -> Volume:
    """Read the images of a series.

    Args:
        frames: of one scan, in any order.
        folder: of the series, for messages.
        modality: DICOM's, such as ``CT``.
        notes: what has to be repaired is added here.

    Returns:
        Volume (1, D, H, W), D along the normal of the slices, in units after rescale slope and intercept.

    Raises:
        DataError: see :func:`grid_of`, and pixels that cannot be read.
    """
    pixels = Pixels()
    grid = grid_of(without_copies(frames, pixels, notes), folder, notes)
    voxels = np.stack([pixels.read(frame) for frame in grid.frames])
    inverted = [frame.is_inverted for frame in grid.frames]
    if any(inverted) and (modality != "CT" or _has_bright_border(voxels)):
        notes.append("grey values are stored inverted (MONOCHROME1) and were turned round")
        voxels = np.stack([pixels.read(frame, invert=frame.is_inverted) for frame in grid.frames])
    return make_volume(_on_grid(voxels, grid), grid.affine, folder)


def grid_of(frames: Sequence[Frame], folder: Path, notes: list[str]) -> Grid:
    """Find the even and upright grid of a series; no pixels are read.

    Uneven gaps are evened out, and slices of a tilted gantry moved within their planes.

    Raises:
        DataError: slices of different size or orientation, two in one place, a missing one, a single one, or
            more voxels than memory is free for.
    """
    _check_alike(frames)
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    rows, columns = ordered[0].shape
    check_shape((len(ordered), rows, columns), folder)
    distances = np.array([float(frame.position @ normal) for frame in ordered])
    gap, count = _even_gap(ordered, distances, notes)
    first, (height, width) = ordered[0], ordered[0].spacing
    check_spacing((gap, height, width), folder)
    shifts = _shifts(ordered)
    length = distances[-1] - distances[0]
    farthest = np.linalg.norm(shifts * (height, width), axis=1).max()
    start, size = np.zeros(2), (rows, columns)
    if is_tilted := farthest > MAX_SHEAR * length:
        angle = np.degrees(np.arctan2(farthest, length))
        _check_tilt(ordered, angle)
        start = np.floor(shifts.min(axis=0))
        extra = np.ceil(shifts.max(axis=0)) - start
        size = int(rows + extra[0]), int(columns + extra[1])
        notes.append(
            f"the gantry was tilted by {angle:.1f} degrees: slices were moved within their planes onto an "
            "upright grid"
        )
    shape = check_shape((count, *size), folder)
    affine: Affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * gap, first.column * height, first.row * width], axis=1)
    affine[:3, 3] = first.position + start[0] * height * first.column + start[1] * width * first.row
    depths = (distances - distances[0]) / gap
    if count == len(ordered):
        depths = np.arange(count, dtype=float) if _is_even(np.diff(distances)) else depths
    return Grid(tuple(ordered), shape, LPS_TO_RAS @ affine, depths, shifts if is_tilted else None, start)


def _shifts(ordered: Sequence[Frame]) -> NDArray[np.float64]:
    """(N, 2) displacement of images within their plane against the first, in pixels along H and W."""
    first, (height, width) = ordered[0], ordered[0].spacing
    moved = np.array([frame.position - first.position for frame in ordered])
    return np.stack([moved @ first.column / height, moved @ first.row / width], axis=1)


def is_straight(ordered: Sequence[Frame]) -> bool:
    """Whether the first pixels of images, in order of depth, lie on one line."""
    normal, shifts = ordered[0].normal, _shifts(ordered)
    depths = np.array([float((frame.position - ordered[0].position) @ normal) for frame in ordered])
    line = np.stack([depths, np.ones(len(depths))], axis=1)
    rest = shifts - line @ np.linalg.lstsq(line, shifts, rcond=None)[0]
    sides = np.array(ordered[0].spacing)
    return bool((np.abs(rest * sides) <= _STRAIGHT * np.maximum(sides, 1)).all())


def _check_tilt(ordered: Sequence[Frame], angle: float) -> None:
    advice = "move slices that do not belong together into folders of their own."
    if not is_straight(ordered):
        raise DataError(
            f"slices {ordered[0].file} to {ordered[-1].file.name} are displaced within their planes, "
            f"and not evenly as by a tilted gantry; {advice}"
        )
    if angle > _STEEPEST:
        raise DataError(
            f"slices {ordered[0].file} to {ordered[-1].file.name} are displaced within their planes "
            f"as if the gantry had been tilted by {angle:.1f} degrees, which none is; {advice}"
        )


def nearest(depths: NDArray[np.float64], stack: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which plane of a stack, in order, each of some depths is nearest to."""
    behind = np.clip(np.searchsorted(stack, depths), min(1, len(stack) - 1), len(stack) - 1)
    before = np.maximum(behind - 1, 0)
    return np.where(np.abs(depths - stack[before]) <= np.abs(depths - stack[behind]), before, behind)


def filled(stack: NDArray[np.float64], at: int, whole: NDArray[np.float64]) -> list[int]:
    """Planes of a volume, ``whole``, to which one of a stack is the nearest."""
    start = (stack[at - 1] + stack[at]) / 2 if at else -np.inf
    stop = (stack[at] + stack[at + 1]) / 2 if at + 1 < len(stack) else np.inf
    planes: list[int] = np.flatnonzero((whole > start) & (whole <= stop)).tolist()
    return planes


def _check_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames:
        if (
            frame.shape != first.shape
            or not np.allclose(frame.spacing, first.spacing, rtol=1e-3)
            or not np.allclose((frame.row, frame.column), (first.row, first.column), atol=1e-3)
        ):
            raise DataError(
                f"{frame.file} differs in size, pixel spacing or orientation from {first.file.name} of the "
                "same series; move slices that do not belong together into folders of their own."
            )


def without_copies(frames: Sequence[Frame], pixels: Pixels, notes: list[str]) -> list[Frame]:
    """Leave out images that are there twice: under two names, or exported again with another identifier."""
    by_place: dict[tuple[float, ...], list[Frame]] = {}
    kept = []
    for frame in frames:
        others = by_place.setdefault(frame.place, [])
        if not any(is_copy(frame, other, pixels) for other in others):
            others.append(frame)
            kept.append(frame)
    if copies := len(frames) - len(kept):
        notes.append(f"{copies} slices were there twice and are taken once")
    return kept


def is_copy(frame: Frame, other: Frame, pixels: Pixels) -> bool:
    """Whether two images of one place have the same voxels, whatever their identifiers say."""
    return frame.shape == other.shape and np.array_equal(pixels.read(frame), pixels.read(other))


def _is_even(gaps: NDArray[np.float64]) -> bool:
    usual = _usual(gaps)
    return bool(np.abs(gaps - usual).max() <= _UNEVEN * usual)


def _usual(gaps: NDArray[np.float64]) -> float:
    """The median; of an even number of gaps the lower of the two in the middle."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])


def _even_gap(frames: Sequence[Frame], distances: NDArray[np.float64], notes: list[str]) -> tuple[float, int]:
    """The distance between slices of an even grid in millimetres, and their number."""
    gaps = np.diff(distances)
    if gaps.min() < _SAME_PLACE:
        at = int(gaps.argmin())
        raise DataError(
            f"{frames[at].file} and {frames[at + 1].file.name} lie in the same place; split the series into "
            "one folder for each time point."
        )
    if _is_even(gaps):
        return float(gaps.mean()), len(frames)
    if (hole := _hole(gaps)) is not None:
        at, usual = hole
        raise DataError(
            f"{frames[at].file} and {frames[at + 1].file.name} are {gaps[at]:.2f} mm apart where "
            f"{usual:.2f} mm is usual in the series; add the missing slices or resample it to even spacing."
        )
    wanted = _finest(gaps)
    count = max(2, round(float(gaps.sum()) / wanted) + 1)
    gap = float(gaps.sum()) / (count - 1)
    notes.append(
        f"uneven gaps between slices, {gaps.min():.2f} to {gaps.max():.2f} mm, were resampled onto an even "
        f"grid of {gap:.2f} mm"
    )
    return gap, count


def _hole(gaps: NDArray[np.float64]) -> tuple[int, float] | None:
    """Find a gap in which slices are missing, and what is usual around it.

    Protocols have slices of several thicknesses, each for a while. One gap that is wider than those on both
    sides, or two, and by a multiple of what is usual, is a slice that was lost; one three times as wide is
    nothing that may be filled in.
    """
    usual = _usual(gaps)
    is_wide = gaps > _WIDE * usual
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_wide, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        run, at_end = gaps[start:stop], start == 0 or stop == len(gaps)
        if len(run) == 1 or (len(run) == 2 and not at_end):
            for at in range(start, stop):
                if _lacks_slices(gaps[at] / usual):
                    return at, usual
        else:
            for at in range(start, stop):
                around = max([usual, *gaps[max(0, at - 1) : at], *gaps[at + 1 : at + 2]])
                if gaps[at] > _WIDE * around and _lacks_slices(gaps[at] / around):
                    return at, float(around)
    return None


def _lacks_slices(ratio: float) -> bool:
    return ratio >= _HOLE or (ratio > _WIDE and abs(ratio - round(ratio)) < 0.1)


def _finest(gaps: NDArray[np.float64]) -> float:
    """The smallest gap that occurs three times, else the usual one: a stray gap makes no fine grid."""
    for gap in np.sort(gaps):
        if np.count_nonzero(np.abs(gaps - gap) <= _UNEVEN * gap) >= 3:
            return float(gap)
    return _usual(gaps)


def _has_bright_border(voxels: NDArray[Any]) -> bool:
    """Whether what surrounds the patient is brighter than the middle of the range, as air never is."""
    low, high = np.percentile(voxels[len(voxels) // 2], (1, 99))
    border = np.concatenate([voxels[:, 0].ravel(), voxels[:, -1].ravel()])
    return bool(np.median(border) - low > high - np.median(border)) and bool(high > low)


def _on_grid(voxels: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Bring images (N, H, W) onto the grid (D, H, W): within their planes first, then across them."""
    if grid.shifts is not None:
        voxels = _straighten(voxels, grid.shifts, grid.start, grid.shape[1:])
    if grid.is_even:
        return voxels
    whole = np.arange(grid.shape[0], dtype=float)
    even = np.empty(grid.shape, voxels.dtype)
    lower = np.clip(np.searchsorted(grid.depths, whole, side="right") - 1, 0, len(voxels) - 2)
    for place, (depth, at) in enumerate(zip(whole, lower, strict=True)):
        share = (depth - grid.depths[at]) / (grid.depths[at + 1] - grid.depths[at])
        share = min(1.0, max(0.0, float(share)))
        between = (1 - share) * voxels[at].astype(np.float64) + share * voxels[at + 1]
        even[place] = np.rint(between) if voxels.dtype.kind in "iu" else between
    return even


def _straighten(
    voxels: NDArray[Any], shifts: NDArray[np.float64], start: NDArray[np.float64], size: tuple[int, ...]
) -> NDArray[Any]:
    """Move every slice by its shift (pixels along H and W) onto a common grid, padded with the lowest."""
    lowest = voxels.min()
    straight = np.full((len(voxels), *size), lowest, dtype=voxels.dtype)
    for before, after, shift in zip(voxels, straight, shifts, strict=True):
        moved = ndimage.affine_transform(
            before.astype(np.float64), np.eye(2), start - shift, size, order=1, cval=float(lowest)
        )
        after[...] = np.rint(moved) if voxels.dtype.kind in "iu" else moved
    return straight
