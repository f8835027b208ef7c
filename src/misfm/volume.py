"""A scan in memory: voxels, where they lie in the patient, and boxes cut out of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
"""Voxels along (D, H, W): the sides of a volume or patch, or a place in one."""
FloatTriple = tuple[float, float, float]
Affine = NDArray[np.float64]

T = TypeVar("T")

GRID_TOLERANCE = 0.1
"""How far apart corners of equal grids may lie, in voxels of the shortest side.

Headers round: a spacing of 0.703125 mm written with three decimals moves the last of 512 voxels of an axis by
0.09. What is wrong moves by more: half a voxel where corners of voxels are taken for their centres. A tenth
of a voxel is less than anybody draws.
"""


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Return three values, one for each of (D, H, W), as a tuple of that length.

    Raises:
        ValueError: more or fewer than three.
    """
    d, h, w = values
    return d, h, w


@dataclass(frozen=True)
class Box:
    """A cuboid of voxels.

    Attributes:
        start: first voxel along (D, H, W); may be negative where the box reaches outside a volume.
        size: number of voxels along (D, H, W).
    """

    start: Shape
    size: Shape

    @property
    def stop(self) -> Shape:
        """First voxel behind the box along (D, H, W)."""
        return triple(a + b for a, b in zip(self.start, self.size, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of the last three axes of an array."""
        return triple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def around(self, other: Box) -> Box:
        """The smallest box that holds this one and another."""
        start = triple(min(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = (max(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, triple(b - a for a, b in zip(start, stop, strict=True)))


_ENDS = ("LR", "PA", "IS")
"""The directions of each world axis: against it, then along it."""


@dataclass(frozen=True)
class NiftiPlace:
    """Where a NIfTI header says that its voxels lie, which it does twice, and not always the same.

    Programs differ in which they trust, so a label map gets both as its scan has them.

    Attributes:
        fields: of the header, by their names: those that place voxels, and their unit.
        other: (4, 4) as ``Volume.affine``, by the statement that this one does not come from; None where
            there is no other.
    """

    fields: Mapping[str, NDArray[Any]]
    other: Affine | None


@dataclass(frozen=True)
class Volume:
    """A 3D image or label map and its place in the patient.

    Attributes:
        data: voxels, shape (C, D, H, W). A label map has one channel and an integer type.
        affine: (4, 4) float64, voxel index (d, h, w, 1) to millimetres in RAS (right, anterior, superior).
        place: what the file says of the place beyond the affine; kept while the grid is that of the file.
    """

    data: NDArray[Any]
    affine: Affine
    place: NiftiPlace | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.data.ndim != 4:
            raise ValueError(f"a volume has axes (C, D, H, W), got shape {self.data.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4x4, got {self.affine.shape}")

    @property
    def shape(self) -> Shape:
        """Voxels along (D, H, W)."""
        return triple(self.data.shape[1:])

    @property
    def spacing(self) -> FloatTriple:
        """Millimetres per voxel along (D, H, W): the lengths of the affine's columns."""
        return triple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """The direction each of (D, H, W) grows towards, e.g. ``"SPL"``: superior, posterior, left."""
        rows = nearest_axes(self.affine)
        return "".join(_ENDS[row][int(self.affine[row, column] > 0)] for column, row in enumerate(rows))

    def turned(self, orientation: str) -> Volume:
        """Permute and flip axes so that (D, H, W) grow towards these directions, such as ``"SPL"``.

        Nothing is interpolated: an oblique grid stays oblique, its axes get the nearest directions. The data
        is a view where that is possible.
        """
        world = nearest_axes(self.affine)
        wanted = [next(row for row, ends in enumerate(_ENDS) if letter in ends) for letter in orientation]
        order = [world.index(row) for row in wanted]
        data = self.data.transpose(0, *(axis + 1 for axis in order))
        affine = self.affine[:, [*order, 3]].copy()
        for axis, (row, letter) in enumerate(zip(wanted, orientation, strict=True)):
            if letter != _ENDS[row][int(affine[row, axis] > 0)]:
                data = np.flip(data, axis + 1)
                affine[:3, 3] += affine[:3, axis] * (data.shape[axis + 1] - 1)
                affine[:3, axis] *= -1
        # Adding zero turns -0.0 into 0.0, so that equal grids have equal bytes.
        return Volume(data, affine + 0.0)

    def with_data(self, data: NDArray[Any]) -> Volume:
        """Return other voxels on the same grid; ``data`` has shape (C, D, H, W) or (D, H, W)."""
        data = data[None] if data.ndim == 3 else data
        if data.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"expected voxels on grid {self.shape}, got {data.shape[1:]}")
        return replace(self, data=data)

    def crop(self, box: Box) -> Volume:
        """Return the part inside ``box``, which must lie within the volume; the affine moves with it."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ (*box.start, 1.0))[:3]
        return Volume(self.data[:, *box.slices], affine)


def empty_volume(shape: Shape, affine: Affine) -> Volume:
    """Return a volume (1, D, H, W) of zeros that takes no memory, for what is asked of its grid."""
    return Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine)


def nearest_axes(affine: Affine) -> Shape:
    """Return the world axis (0 right-left, 1 anterior-posterior, 2 superior-inferior) of each voxel axis.

    Each world axis is used once, also where the grid is oblique: the assignment with the largest sum of
    absolute direction cosines wins.
    """
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda rows: sum(cosines[row, c] for c, row in enumerate(rows)))
    return triple(best)


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """Return the smallest box that holds every voxel of a mask (D, H, W); None if it has none."""
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(occupied[0]):
        return None
    start = triple(int(places[0]) for places in occupied)
    return Box(start, triple(int(places[-1]) + 1 - a for places, a in zip(occupied, start, strict=True)))


def grid_difference(volume: Volume, reference: Volume) -> str:
    """Say how the grid of a volume differs from that of a reference by more than headers are rounded.

    Returns:
        A clause such as "their affines place a corner 1.5 mm apart"; nothing where the grids are the same
        (:data:`GRID_TOLERANCE`).
    """
    if volume.shape != reference.shape:
        return f"its shape is {volume.shape}, not {reference.shape}"
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in volume.shape))])
    places = product(_affines(volume), _affines(reference))
    distances = [float(np.linalg.norm(corners @ (a - b).T, axis=1).max()) for a, b in places]
    if min(distances) <= GRID_TOLERANCE * min(reference.spacing):
        return ""
    return f"their affines place a corner {distances[0]:.3g} mm apart"


def _affines(volume: Volume) -> list[Affine]:
    """All places that a file gives: what was drawn on a scan has that which the program trusted."""
    other = volume.place.other if volume.place else None
    return [volume.affine] if other is None else [volume.affine, other]
