"""Context restoration: put back boxes of voxels that changed places.

Chen et al., "Self-supervised learning for medical image analysis using image context restoration", Medical
Image Analysis 2019. Again and again two boxes of one size that do not overlap are drawn, and their contents
change places in the image as it is by then; the network restores it, with the squared error. No voxel is
lost or invented, so intensities cannot give the places away: only their context can.

The paper works on slices. Numbers for volumes are those of PyMIC (``PatchSwaping``: 10 to 20 pairs of
8x16x16 voxels), which differs from the paper in that every swap reads the unchanged image and boxes may
overlap, so that contents are doubled and lost; here the paper's rule holds. Our departures: boxes lie within
the volume, never in its padding, and are cut to a quarter of it along each axis, so that pairs find room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from misfm.batches import Placement
from misfm.pretext.base import PRETEXTS
from misfm.pretext.restoration import Restorable, Restoration
from misfm.seeding import draw_int
from misfm.settings import CountRange, PositiveShape
from misfm.volume import Box, Shape, triple


@dataclass(frozen=True)
class Swap:
    """Two boxes of one size that share no voxel."""

    first: Box
    second: Box


@PRETEXTS.register("patch-swapping")
class PatchSwapping(Restoration):
    """Restore a patch of which pairs of boxes changed places; see the module's docstring."""

    num_swaps: CountRange = (10, 20)
    """Fewest and most pairs."""
    block_size: PositiveShape = (8, 16, 16)
    """Voxels of a box along (D, H, W)."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Restorable:
        """Swap boxes within each patch; see the base class."""
        targets = patches[:, 0]
        inputs = [
            apply_swaps(image, sample_swaps(self, extent, generator))
            for image, extent in zip(targets, placement.valid[:, 0].tolist(), strict=True)
        ]
        real = placement.real(patch_size, patches.device)[:, 0]
        return Restorable(torch.stack(inputs), targets, real=real)


def sample_swaps(
    settings: PatchSwapping, extent: Sequence[Sequence[int]], generator: Generator
) -> list[Swap]:
    """Draw pairs of boxes.

    Args:
        settings: how many and how large.
        extent: first voxel and first voxel behind of the part of the patch they lie in.
        generator: where all draws come from.
    """
    low, high = extent
    sides = [stop - start for start, stop in zip(low, high, strict=True)]
    size = [max(1, min(block, side // 4)) for block, side in zip(settings.block_size, sides, strict=True)]
    if max(sides) < 2:
        return []  # a single voxel has nothing to change places with

    def draw_box() -> Box:
        start = [draw_int(a, b - n, generator) for a, b, n in zip(low, high, size, strict=True)]
        return Box(triple(start), triple(size))

    swaps: list[Swap] = []
    num_swaps = draw_int(*settings.num_swaps, generator)
    while len(swaps) < num_swaps:
        pair = Swap(draw_box(), draw_box())
        if not overlap(pair.first, pair.second):
            swaps.append(pair)
    return swaps


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes share a voxel."""
    spans = zip(first.start, first.stop, second.start, second.stop, strict=True)
    return all(a < d and c < b for a, b, c, d in spans)


def apply_swaps(image: Tensor, swaps: Sequence[Swap]) -> Tensor:
    """Return a copy of (C, D, H, W) in which the boxes changed places, one pair after the other."""
    swapped = image.clone()
    for swap in swaps:
        first, second = swapped[:, *swap.first.slices], swapped[:, *swap.second.slices]
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    return swapped
