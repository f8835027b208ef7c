"""Probabilities from the grid of a network's input back to that of the scan, a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfm.volume import Affine, Volume

Voxel = TypeVar("Voxel", bound=np.generic)

_MAX_VALUES = 2**24
"""Probabilities made at a time (64 MiB)."""


@dataclass(frozen=True)
class Line:
    """Linear interpolation along an axis: each place lies between two voxels, sorted along the axis.

    Attributes:
        lower, upper: (N,) int64, neighbours of each place; equal where it lies at or beyond the border.
        share: (N,) float32, weight of the upper one.
    """

    lower: Tensor
    upper: Tensor
    share: Tensor

    def of(self, start: int, stop: int, first: int = 0) -> Line:
        """Return the places ``start`` to ``stop``, with voxels counted from ``first``."""
        part = slice(start, stop)
        return Line(self.lower[part] - first, self.upper[part] - first, self.share[part])

    def interpolate(self, x: Tensor, axis: int) -> Tensor:
        """Return ``x`` (K, D, H, W) at the places along an axis."""
        share = self.share.to(x.device).view(-1, *[1] * (x.ndim - 1 - axis))
        lower = x.index_select(axis, self.lower.to(x.device))
        return lower.lerp_(x.index_select(axis, self.upper.to(x.device)), share)


def lines_between(body: Volume, image: Volume) -> list[Line]:
    """Where the voxels of ``body`` lie on the grid of ``image``, which has the same axes."""
    to_image = np.linalg.inv(image.affine) @ body.affine
    lines = []
    for axis, (count, side) in enumerate(zip(body.shape, image.shape, strict=True)):
        places = torch.arange(count, dtype=torch.float64) * to_image[axis, axis] + to_image[axis, 3]
        places = places.clamp(0, side - 1)
        lower = places.floor().long()
        lines.append(Line(lower, (lower + 1).clamp(max=side - 1), (places - lower).float()))
    return lines


def activated(
    slabs: Iterable[tuple[int, Tensor]], activate: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Turn logits into probabilities, a few slices at a time."""
    for start, logits in slabs:
        step = max(1, _MAX_VALUES // logits[:, 0].numel())
        for first in range(0, logits.shape[1], step):
            yield start + first, activate(logits[:, first : first + step])


def activated_between(
    slabs: Iterable[tuple[int, Tensor]], activate: Callable[[Tensor], Tensor], lines: Sequence[Line]
) -> Iterator[tuple[int, Tensor]]:
    """Interpolate probabilities to another grid, a few slices at a time.

    A slice is made as soon as both of its neighbours are there, so a slab's last slice is kept for the next.
    """
    along_d, along_h, along_w = lines
    done, kept = 0, None
    for start, logits in slabs:
        slab = activate(logits)
        if kept is not None:
            slab, start = torch.cat([kept, slab], dim=1), start - 1
        kept = slab[:, -1:].clone()
        ready = int((along_d.upper < start + slab.shape[1]).sum())
        step = max(1, _MAX_VALUES // (len(slab) * len(along_h.share) * len(along_w.share)))
        for first in range(done, ready, step):
            slices = along_d.of(first, min(first + step, ready), start).interpolate(slab, 1)
            yield first, along_w.interpolate(along_h.interpolate(slices, 2), 3)
        done = ready


def reorient(voxels: NDArray[Voxel], affine: Affine, target: Affine) -> NDArray[Voxel]:
    """Permute and flip (..., D, H, W) from the grid of ``affine`` to that of ``target``, else the same."""
    columns = np.linalg.inv(affine[:3, :3]) @ target[:3, :3]
    order = np.abs(columns).argmax(axis=0)
    first = voxels.ndim - 3
    backwards = tuple(first + axis for axis, source in enumerate(order) if columns[source, axis] < 0)
    return np.ascontiguousarray(np.flip(voxels.transpose(*range(first), *(first + order)), backwards))
