"""Augmented views of a patch, as Volume Fusion v2 draws them (PyMIC ``Crop4VolumeFusion``).

A view is a random resized crop, mirrored, with its contrast stretched between two random percentiles and a
random gamma; its intensities lie in [0, 1]. Drawing (:func:`sample_view`) and doing (:func:`apply_view`) are
apart, so the doing is pure and follows the device of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Generator, Tensor

from misfm.augment.mirrors import flip, sample_flips
from misfm.augment.percentiles import Pair, percentile_pair
from misfm.augment.unread import FLAT, unread_contrast
from misfm.seeding import draw_int, draw_uniform
from misfm.settings import Probability, Range, Settings, ascending
from misfm.volume import Shape, triple

LowPercent = Annotated[float, Field(ge=0, le=50)]
HighPercent = Annotated[float, Field(ge=50, le=100)]


class ViewSettings(Settings):
    """How views are drawn; defaults are the published values of Volume Fusion v2."""

    scale: Range = (0.7, 1.5)
    """Side of the crop over side of the view, drawn for each axis."""
    p_flip: Probability = 0.5
    """Chance of a mirror along each axis."""
    low_percentile: Annotated[tuple[LowPercent, LowPercent], AfterValidator(ascending)] = (0.1, 2.0)
    """Percentile that is mapped to 0.1."""
    high_percentile: Annotated[tuple[HighPercent, HighPercent], AfterValidator(ascending)] = (98.0, 99.9)
    """Percentile that is mapped to 0.9."""
    gamma: Range = (0.7, 1.5)
    """Exponent of the final intensity map."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Voxels along (D, H, W) that hold the largest crop for a view of ``patch_size``."""
        return triple(math.ceil(side * max(self.scale[1], 1.0)) for side in patch_size)


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
    percentiles: Pair
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
        start=triple(starts),
        size=triple(sizes),
        flips=sample_flips(settings.p_flip, generator),
        percentiles=(
            draw_uniform(*settings.low_percentile, generator),
            draw_uniform(*settings.high_percentile, generator),
        ),
        gamma=draw_uniform(*settings.gamma, generator),
    )


def apply_view(patch: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return the view (C, *patch_size) of a source patch (C, D, H, W), values in [0, 1].

    Contrast and gamma are applied to each channel on its own.
    """
    resized = place(patch, view, patch_size)
    if resized.device.type != "cpu":
        return torch.stack([unread_contrast(channel, view.percentiles, view.gamma) for channel in resized])
    return torch.stack([bend(stretch_contrast(channel, view.percentiles), view.gamma) for channel in resized])


def view_of_mask(mask: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return which voxels (*patch_size) of a view any voxel of a mask (D, H, W) of the source has part in."""
    return place(mask[None].float(), view, patch_size)[0] > 0


def place(patch: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return the crop of a source patch (C, D, H, W), mirrored and resized to (C, *patch_size)."""
    d, h, w = (slice(start, start + size) for start, size in zip(view.start, view.size, strict=True))
    # The mirror copies the crop, which resizing would do anyway.
    return resize(flip(patch[:, d, h, w], view.flips), patch_size)


def resize(x: Tensor, size: Shape) -> Tensor:
    """Interpolate (C, D, H, W) trilinearly to (C, *size), first and last voxel centres kept.

    Equal to ``F.interpolate(mode="trilinear", align_corners=True)`` and, like it, to the ``ndimage.zoom`` of
    the published pipeline, but three times as fast on a CPU: D and H are interpolated with W as the channels
    of an image in channels-last order, whole rows at a time, and then W alone.
    """
    if x.shape[1:] == size:
        return x
    images = x.contiguous().permute(0, 3, 1, 2)
    rows = F.interpolate(images, size=size[:2], mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    rows = rows.reshape(x.shape[0], size[0] * size[1], x.shape[3])
    resized = F.interpolate(rows, size=size[2], mode="linear", align_corners=True)
    return resized.view(x.shape[0], *size)


def stretch_contrast(x: Tensor, percentiles: Pair) -> Tensor:
    """Map [min, p_low, p_high, max] piecewise linearly to [0, 0.1, 0.9, 1] (adaptive contrast of v2).

    Where p_low is the minimum, as in air that was clipped to one value, the minimum becomes 0.1 as published;
    likewise 0.9 where p_high is the maximum. A constant patch becomes 0.1.

    Args:
        x: any shape.
        percentiles: the two in 0..100 at which p_low and p_high lie.
    """
    low, high = percentile_pair(x, percentiles)
    smallest, largest = (float(extreme) for extreme in x.aminmax())
    # Interpolation leaves rounding errors in what was constant; no ramp may be so steep as to show them.
    flat = max(FLAT * max(abs(smallest), abs(largest)), torch.finfo(x.dtype).tiny)
    stretched = ramp(x, low, max(high, low + flat), 0.8)
    stretched += ramp(x, smallest, low, 0.1) if low - smallest > flat else 0.1
    if largest - high > flat:
        stretched += ramp(x, high, largest, 0.1)
    return stretched


def ramp(x: Tensor, start: float, stop: float, height: float) -> Tensor:
    """Return 0 where x is up to ``start``, ``height`` from ``stop`` on, and the straight line between."""
    return (x - start).mul_(height / (stop - start)).clamp_(0, height)


def bend(x: Tensor, gamma: float) -> Tensor:
    """Raise x, scaled to [0, 1], to the power ``gamma`` and scale it back: minimum and maximum stay."""
    smallest, largest = (float(extreme) for extreme in x.aminmax())
    span = largest - smallest
    if span == 0:
        return x
    # exp2(gamma * log2(x)) is x ** gamma; three times as fast on a CPU.
    curve = (x - smallest).div_(span).log2_().mul_(gamma).exp2_()
    return curve.mul_(span).add_(smallest).clamp_(smallest, largest)
