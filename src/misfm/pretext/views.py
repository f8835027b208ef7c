"""Augmented views of a patch, as Volume Fusion v2 draws them (PyMIC ``Crop4VolumeFusion``).

A view is a random resized crop, mirrored, with its contrast stretched between two random percentiles and a
random gamma; its intensities lie in [0, 1]. Drawing (:func:`sample_view`) and doing (:func:`apply_view`) are
apart, so the doing is pure and follows the device of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from misfm.models.base import Shape
from misfm.seeding import draw_int, draw_uniform
from misfm.settings import Settings

FloatRange = tuple[float, float]


class ViewSettings(Settings):
    """How views are drawn; defaults are the published values of Volume Fusion v2."""

    scale: FloatRange = (0.7, 1.5)
    """Side of the crop over side of the view, drawn for each axis."""
    flip_probability: float = 0.5
    """Chance of a mirror along each axis."""
    low_percentile: FloatRange = (0.1, 2.0)
    """Percentile that is mapped to 0.1."""
    high_percentile: FloatRange = (98.0, 99.9)
    """Percentile that is mapped to 0.9."""
    gamma: FloatRange = (0.7, 1.5)
    """Exponent of the final intensity map."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Voxels along (D, H, W) that hold the largest crop for a view of ``patch_size``."""
        d, h, w = (math.ceil(side * max(self.scale[1], 1.0)) for side in patch_size)
        return d, h, w


@dataclass(frozen=True)
class View:
    """One draw.

    Attributes:
        start: first voxel of the crop along (D, H, W), within the source patch.
        size: voxels of the crop along (D, H, W).
        flips: mirrored axes, counted from -3 (D) to -1 (W).
        percentiles: the two in 0..100 between which contrast is stretched.
        gamma: exponent.
    """

    start: Shape
    size: Shape
    flips: tuple[int, ...]
    percentiles: FloatRange
    gamma: float


def sample_view(
    settings: ViewSettings, patch_size: Shape, extent: Sequence[Sequence[int]], generator: Generator
) -> View:
    """Draw a view of ``patch_size`` from a source patch.

    Args:
        settings: the ranges.
        patch_size: (D, H, W) of the view.
        extent: first voxel and first voxel behind of the real (unpadded) part of the source patch; the crop
            stays within it, as the published crop stays within the image.
        generator: where all draws come from.
    """
    starts, sizes = [], []
    for side, low, high in zip(patch_size, extent[0], extent[1], strict=True):
        size = max(1, min(int(side * draw_uniform(*settings.scale, generator)), high - low))
        sizes.append(size)
        starts.append(draw_int(low, high - size, generator))
    return View(
        start=(starts[0], starts[1], starts[2]),
        size=(sizes[0], sizes[1], sizes[2]),
        flips=sample_flips(settings.flip_probability, generator),
        percentiles=(
            draw_uniform(*settings.low_percentile, generator),
            draw_uniform(*settings.high_percentile, generator),
        ),
        gamma=draw_uniform(*settings.gamma, generator),
    )


def apply_view(patch: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return the view (C, *patch_size) of a source patch (C, D, H, W), values in [0, 1]."""
    d, h, w = (slice(start, start + size) for start, size in zip(view.start, view.size, strict=True))
    resized = resize(patch[:, d, h, w], patch_size)
    return stretch_contrast(flip(resized, view.flips), view.percentiles).pow(view.gamma)


def sample_flips(probability: float, generator: Generator) -> tuple[int, ...]:
    """Draw which of the axes -3, -2, -1 to mirror."""
    draws = torch.rand(3, generator=generator, device=generator.device).tolist()
    return tuple(axis for axis, draw in zip((-3, -2, -1), draws, strict=True) if draw < probability)


def flip(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mirror (…, D, H, W) along ``axes``."""
    return x.flip(axes) if axes else x


def resize(x: Tensor, size: Shape) -> Tensor:
    """Interpolate (C, D, H, W) trilinearly to (C, *size), first and last voxel centres kept.

    Equal to ``F.interpolate(mode="trilinear", align_corners=True)`` and, like it, to the ``ndimage.zoom`` of
    the published pipeline; done in the plane first and then along D, which is faster on a CPU.
    """
    if x.shape[1:] == size:
        return x
    in_plane = F.interpolate(x, size=size[1:], mode="bilinear", align_corners=True)
    depth = x.shape[1]
    positions = torch.linspace(0, depth - 1, size[0], dtype=torch.float64)
    below = positions.floor().long().clamp(max=max(depth - 2, 0))
    weights = (positions - below).to(x).view(1, -1, 1, 1)
    below = below.to(x.device)
    above = (below + 1).clamp(max=depth - 1)
    return torch.lerp(in_plane.index_select(1, below), in_plane.index_select(1, above), weights)


def stretch_contrast(x: Tensor, percentiles: FloatRange) -> Tensor:
    """Map [min, p_low, p_high, max] piecewise linearly to [0, 0.1, 0.9, 1] (adaptive contrast of v2).

    A constant patch becomes 0; where two of the four points coincide, the jump between them is a step.
    """
    low, high = (percentile(x, q) for q in percentiles)
    smallest, largest = x.min(), x.max()
    tiny = torch.finfo(x.dtype).tiny
    below = ((x - smallest) / (low - smallest).clamp(min=tiny)).clamp_(0, 1)
    middle = ((x - low) / (high - low).clamp(min=tiny)).clamp_(0, 1)
    above = ((x - high) / (largest - high).clamp(min=tiny)).clamp_(0, 1)
    return below.mul_(0.1).add_(middle, alpha=0.8).add_(above, alpha=0.1).clamp_(0, 1)


def percentile(x: Tensor, q: float, stride: int = 61) -> Tensor:
    """Return the q-th percentile of all values, exactly as ``numpy.percentile`` (linear), without a full sort.

    A sorted sample of every ``stride``-th value brackets the tail that holds the wanted rank; only that tail
    is sorted. Falls back to sorting everything where the bracket missed.

    Args:
        x: any shape.
        q: 0..100.
        stride: distance of the sampled values.
    """
    values = x.flatten()
    position = (values.numel() - 1) * q / 100
    rank = int(position)
    upper = q > 50
    sample = values[::stride].sort().values
    margin = 4 + int(3 * math.sqrt(sample.numel() * min(q, 100 - q) / 100))
    center = int(sample.numel() * q / 100)
    bracket = sample[max(center - margin, 0) if upper else min(center + margin, sample.numel() - 1)]
    tail = values[values >= bracket] if upper else values[values <= bracket]
    skipped = values.numel() - tail.numel() if upper else 0
    if not (skipped <= rank and min(rank + 1, values.numel() - 1) < skipped + tail.numel()):
        tail, skipped = values, 0
    ordered = tail.sort().values
    at = ordered[rank - skipped]
    following = ordered[min(rank - skipped + 1, ordered.numel() - 1)]
    return torch.lerp(at, following, position - rank)
