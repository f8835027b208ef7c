"""Smooth random displacement fields: cubic B-splines over a coarse grid of control points.

A cubic B-spline is separable, so a field is its control points times one small matrix for each axis. No point
of a patch is folded over another as long as control points move by less than 1 / 2.48 of the distance between
them (Choi & Lee, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", 2000).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from misfm.batches import sent
from misfm.volume import FloatTriple, Shape, triple

UNFOLDED = 0.4
"""Share of their distance that control points may move by; 1 / 2.48, rounded down."""


def num_control_points(size: Shape, spacing: FloatTriple, distance: float) -> Shape:
    """Return how many control points along (D, H, W) a patch needs, with those around its border.

    Args:
        size: voxels along (D, H, W).
        spacing: mm per voxel.
        distance: mm between control points.
    """
    return triple(math.ceil(side * mm / distance) + 3 for side, mm in zip(size, spacing, strict=True))


def displacement_field(points: Tensor, size: Shape, spacing: FloatTriple, distance: float) -> Tensor:
    """Return the displacement (B, D, H, W, 3) of each voxel.

    Args:
        points: (B, d, h, w, 3) displacements of the control points, the middle of which is the patch's.
        size: voxels along (D, H, W).
        spacing: mm per voxel.
        distance: mm between control points.
    """
    along_d, along_h, along_w = (
        sent(spline_matrix(side, count, mm / distance), points)
        for side, count, mm in zip(size, points.shape[1:4], spacing, strict=True)
    )
    # The coarse axes first: what is large is then written only once.
    field = torch.einsum("bdhwx,Dd->bDhwx", points, along_d)
    field = torch.einsum("bDhwx,Hh->bDHwx", field, along_h)
    return torch.einsum("bDHwx,Ww->bDHWx", field, along_w)


def spline_matrix(side: int, count: int, ratio: float) -> Tensor:
    """Return the (side, count) weights of ``count`` control points in each of ``side`` voxels.

    Args:
        side: number of voxels.
        count: number of control points, centred on the voxels.
        ratio: size of a voxel over the distance between control points.
    """
    places = (torch.arange(side) - (side - 1) / 2) * ratio
    points = torch.arange(count) - (count - 1) / 2
    away = (places[:, None] - points).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    return torch.where(away < 1, near, (2 - away).clamp(min=0) ** 3 / 6)
