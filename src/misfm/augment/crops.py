"""Crops of a source patch: where they lie, what they share, and how each is varied on its own.

Contrastive tasks read more of a volume than the network takes (the *source*) and cut crops of the network's
patch size from it. Drawing and doing are apart, so the doing is pure and follows the device of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from misfm.augment.intensity import IntensityPlan, IntensitySettings, apply_intensities, sample_intensities
from misfm.augment.mirrors import flip, sample_flips
from misfm.seeding import draw_int
from misfm.settings import Probability, Settings
from misfm.volume import Shape, triple

Extent = Sequence[Sequence[int]]
"""First voxel and first voxel behind, along (D, H, W), of the part of a source that is not padding."""


class CropSettings(Settings):
    """How crops are varied, each on its own; defaults are those of VoCo and SimCLR in nnssl.

    nnssl at times applies gamma twice (on the negative in 10 %, on the image in 30 %); here one of both
    happens, equally often.
    """

    intensities: IntensitySettings = IntensitySettings(
        p_low_resolution=0.1, p_gamma=0.37, p_gamma_inverted=0.27
    )
    """Noise, blur, low resolution, brightness, contrast and gamma."""
    p_flip: Probability = 0.5
    """Chance of a mirror along each axis."""
    quarter_turns: bool = True
    """Turn by a random multiple of 90 degrees in the plane of D and H; of 180 where their sides differ."""


@dataclass(frozen=True)
class Turn:
    """One draw for a crop.

    Attributes:
        flips: mirrored axes, counted from -3 (D) to -1 (W).
        quarters: turns by 90 degrees that follow, from D towards H.
    """

    flips: tuple[int, ...] = ()
    quarters: int = 0


@dataclass(frozen=True)
class Variation:
    """One draw for a batch of crops: the turn of each, and the intensities of all."""

    turns: tuple[Turn, ...]
    intensities: IntensityPlan


def tiled_size(size: Shape, counts: Shape) -> Shape:
    """Voxels along (D, H, W) of a source that holds so many crops of ``size`` voxels side by side."""
    return triple(side * count for side, count in zip(size, counts, strict=True))


def sample_start(size: Shape, source: Shape, extent: Extent, generator: Generator) -> Shape:
    """Draw the first voxel of a crop of ``size`` voxels from a source of ``source`` voxels.

    The crop lies within ``extent`` along each axis that is long enough, else it holds all of it.
    """
    return _draw(start_limits(size, source, extent), generator)


def sample_start_near(
    start: Shape, reach: Shape, limits: Sequence[tuple[int, int]], generator: Generator
) -> Shape:
    """Draw the first voxel of a crop, at most ``reach`` from ``start`` along (D, H, W) and within limits."""
    near = [
        (max(low, place - most), min(high, place + most))
        for place, most, (low, high) in zip(start, reach, limits, strict=True)
    ]
    return _draw(near, generator)


def start_limits(size: Shape, source: Shape, extent: Extent) -> list[tuple[int, int]]:
    """First and last start along (D, H, W) of the crops that :func:`sample_start` draws from."""
    limits = []
    for side, length, low, high in zip(size, source, extent[0], extent[1], strict=True):
        first, last = sorted((low, high - side))
        limits.append((max(first, 0), min(last, length - side)))
    return limits


def _draw(limits: Sequence[tuple[int, int]], generator: Generator) -> Shape:
    return triple(draw_int(low, high, generator) for low, high in limits)


def cut(source: Tensor, start: Shape, size: Shape) -> Tensor:
    """Return the crop (…, *size) of a source (…, D, H, W), without copying it."""
    d, h, w = (slice(first, first + side) for first, side in zip(start, size, strict=True))
    return source[..., d, h, w]


def overlap(first: Tensor, second: Tensor, size: Shape) -> Tensor:
    """Share of its volume, in 0..1, that each crop has in common with each other one.

    Args:
        first: (N, 3) starts of crops of ``size`` voxels.
        second: (M, 3) starts of others.
        size: (D, H, W) of all of them.

    Returns:
        (N, M) float32.
    """
    sides = torch.tensor(size)
    common = (sides - (first[:, None] - second).abs()).clamp(min=0)
    return (common / sides).prod(-1)


def sample_variation(settings: CropSettings, count: int, size: Shape, generator: Generator) -> Variation:
    """Draw how ``count`` crops of ``size`` voxels are varied."""
    turns = tuple(sample_turn(settings, size, generator) for _ in range(count))
    return Variation(turns, sample_intensities(count, settings.intensities, generator))


def apply_variation(crops: Tensor, variation: Variation) -> Tensor:
    """Return crops (B, C, D, H, W) turned and with other intensities."""
    turned = [apply_turn(crop, turn) for crop, turn in zip(crops, variation.turns, strict=True)]
    return apply_intensities(torch.stack(turned), variation.intensities)


def sample_turn(settings: CropSettings, size: Shape, generator: Generator) -> Turn:
    """Draw mirrors and a turn that keep ``size``."""
    flips = sample_flips(settings.p_flip, generator)
    if not settings.quarter_turns:
        return Turn(flips)
    unit = 1 if size[0] == size[1] else 2
    return Turn(flips, unit * draw_int(0, 4 // unit - 1, generator))


def apply_turn(x: Tensor, turn: Turn) -> Tensor:
    """Mirror (…, D, H, W), then turn it in the plane of D and H."""
    mirrored = flip(x, turn.flips)
    return mirrored.rot90(turn.quarters, (-3, -2)) if turn.quarters else mirrored
