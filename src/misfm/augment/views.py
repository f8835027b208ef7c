"""Augmented views of a patch, as Volume Fusion v2 draws them (PyMIC ``Crop4VolumeFusion``).

A view is a random resized crop, mirrored, with its contrast stretched between two random percentiles and a
random gamma; its intensities lie in [0, 1]. Drawing (:func:`sample_view`) and doing (:func:`apply_view`) are
apart, so the doing is pure and follows the device of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Generator, Tensor

from misfm.augment.mirrors import flip, sample_flips
from misfm.augment.percentiles import Pair, spread
from misfm.seeding import draw_int, draw_uniform
from misfm.settings import Probability, Range, Settings, ascending
from misfm.volume import Shape, triple

LowPercent = Annotated[float, Field(ge=0, le=50)]
HighPercent = Annotated[float, Field(ge=50, le=100)]

FLAT = 1e-5
"""Share of the largest magnitude below which two intensities count as the same."""
NEARLY_NOTHING = 2.0**-64
"""Instead of 0 where a logarithm is taken: that of 0 takes a CPU ten times as long."""
SLAB = 2**17
"""Voxels of a slab for each thread: three arrays of them, as :func:`bend` has, are 1.5 MB."""


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


def apply_view(patch: Tensor, view: View, patch_size: Shape, out: Tensor | None = None) -> Tensor:
    """Return the view (C, *patch_size) of a source patch (C, D, H, W), values in [0, 1].

    Contrast and gamma are applied to each channel on its own.

    Args:
        patch: the source.
        view: the draw.
        patch_size: (D, H, W) of the view.
        out: contiguous memory for the view.
    """
    placed = place(patch, view, patch_size)
    out = torch.empty_like(placed, memory_format=torch.contiguous_format) if out is None else out
    for channel, target in zip(placed, out, strict=True):
        bend(channel, view.percentiles, view.gamma, target)
    return out


def view_of_mask(mask: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return which voxels (*patch_size) of a view any voxel of a mask (D, H, W) of the source has part in."""
    return place(mask[None].float(), view, patch_size)[0] > 0


def place(patch: Tensor, view: View, patch_size: Shape) -> Tensor:
    """Return the crop of a source patch (C, D, H, W), resized to (C, *patch_size) and mirrored."""
    d, h, w = (slice(start, start + size) for start, size in zip(view.start, view.size, strict=True))
    # A resized crop lies in the cache of a CPU: mirroring it costs a third of mirroring the crop.
    return flip(resize(patch[:, d, h, w], patch_size), view.flips)


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


def bend(x: Tensor, percentiles: Pair, gamma: float, out: Tensor) -> None:
    """Stretch contrast and bend it by gamma: adaptive contrast and gamma of v2.

    Contrast maps [min, p_low, p_high, max] piecewise linearly to [0, 0.1, 0.9, 1]. Where p_low is the
    minimum, as in air that was clipped to one value, the minimum becomes 0.1 as published; likewise 0.9 where
    p_high is the maximum. A constant patch becomes 0.1. Gamma bends between the least and the largest value,
    which stay.

    Args:
        x: any shape.
        percentiles: the two in 0..100 at which p_low and p_high lie.
        gamma: exponent.
        out: where the result goes, contiguous, of the shape of x.
    """
    curve = Curve.through(spread(x, percentiles))
    for part, target in zip(slabs(x), slabs(out), strict=True):
        below, middle = torch.minimum(part, curve.low), torch.minimum(part, curve.high)
        above = torch.sub(part, middle, out=target)
        middle.sub_(below)
        rise = below.sub_(curve.smallest).mul_(curve.slopes[0])
        rise.addcmul_(middle, curve.slopes[1]).addcmul_(above, curve.slopes[2])
        # exp2(gamma * log2(x)) is x ** gamma; three times as fast on a CPU, but for the logarithm of 0.
        power = rise.clamp_(min=NEARLY_NOTHING).log2_().mul_(gamma).exp2_()
        torch.add(power.mul_(curve.span), curve.floor, out=target).clamp_(0, 1)


def slabs(x: Tensor) -> Sequence[Tensor]:
    """Cut into flat pieces that a CPU keeps in its nearest caches through many passes; elsewhere into one."""
    flat = x.reshape(-1)
    return torch.split(flat, SLAB * torch.get_num_threads() if x.device.type == "cpu" else len(flat))


class Curve(NamedTuple):
    """A piecewise linear map through the percentiles of intensities, all of it tensors of one element.

    Attributes:
        smallest: where it begins, with 0.
        low: where its slope changes.
        high: where its slope changes again.
        slopes: below ``low``, between the two, above ``high``; it ends with 1.
        floor: least value of the stretched contrast, to which 0 is mapped at the end.
        span: how far from there the largest is, to which 1 is mapped.
    """

    smallest: Tensor
    low: Tensor
    high: Tensor
    slopes: tuple[Tensor, Tensor, Tensor]
    floor: Tensor
    span: Tensor

    @classmethod
    def through(cls, points: Tensor) -> Curve:
        """Lay the map through minimum, p_low, p_high and maximum (4,)."""
        smallest, low, high, largest = points.unbind()
        # Interpolation leaves rounding errors in what was constant; no ramp may be so steep as to show them.
        flat = (FLAT * points.abs().amax()).clamp(min=torch.finfo(torch.float32).tiny)
        high = torch.maximum(high, low + flat)
        below, above = low - smallest, largest - high
        steepness = (
            torch.where(below > flat, 0.1 / below, 0.0),
            0.8 / (high - low),
            torch.where(above > flat, 0.1 / above, 0.0),
        )
        floor = torch.where(below > flat, 0.0, 0.1)
        middle = torch.minimum(largest, high) - low
        span = steepness[0] * below + steepness[1] * middle + steepness[2] * above
        scale = torch.where(span > 0, 1 / span, 1.0)
        slopes = (steepness[0] * scale, steepness[1] * scale, steepness[2] * scale)
        return cls(smallest, low, high, slopes, floor, span)
