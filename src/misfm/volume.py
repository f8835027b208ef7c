"""A scan in memory: voxels, where they lie in the patient, and boxes cut out of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
"""Voxels along (D, H, W): the sides of a volume or patch, or a place in one."""
FloatTriple = tuple[float, float, float]
Affine = NDArray[np.float64]


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
        d, h, w = (a + b for a, b in zip(self.start, self.size, strict=True))
        return d, h, w

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of the last three axes of an array."""
        d, h, w = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w


@dataclass(frozen=True)
class Volume:
    """A 3D image or label map and its place in the patient.

    Attributes:
        data: voxels, shape (C, D, H, W). A label map has one channel and an integer type.
        affine: (4, 4) float64, voxel index (d, h, w, 1) to millimetres in RAS (right, anterior, superior).
    """

    data: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        if self.data.ndim != 4:
            raise ValueError(f"a volume has axes (C, D, H, W), got shape {self.data.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4x4, got {self.affine.shape}")

    @property
    def shape(self) -> Shape:
        """Voxels along (D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w

    @property
    def spacing(self) -> FloatTriple:
        """Millimetres per voxel along (D, H, W): the lengths of the affine's columns."""
        d, h, w = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return d, h, w

    @property
    def orientation(self) -> str:
        """The direction each of (D, H, W) grows towards, e.g. ``"SPL"``: superior, posterior, left."""
        rows = nearest_axes(self.affine)
        letters = ("LR", "PA", "IS")
        return "".join(letters[row][int(self.affine[row, column] > 0)] for column, row in enumerate(rows))

    def with_data(self, data: NDArray[Any]) -> Volume:
        """Return other voxels on the same grid; ``data`` has shape (C, D, H, W) or (D, H, W)."""
        data = data[None] if data.ndim == 3 else data
        if data.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"expected voxels on grid {self.shape}, got {data.shape[1:]}")
        return Volume(data, self.affine)

    def crop(self, box: Box) -> Volume:
        """Return the part inside ``box``, which must lie within the volume; the affine moves with it."""
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ (*box.start, 1.0))[:3]
        return Volume(self.data[:, *box.slices], affine)


def nearest_axes(affine: Affine) -> Shape:
    """Return the world axis (0 right-left, 1 anterior-posterior, 2 superior-inferior) of each voxel axis.

    Each world axis is used once, also where the grid is oblique: the assignment with the largest sum of
    absolute direction cosines wins.
    """
    cosines = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda rows: sum(cosines[row, c] for c, row in enumerate(rows)))
    return best[0], best[1], best[2]
