"""Hiding blocks of a patch, and what tasks that predict the hidden voxels have in common.

A grid of blocks covers the patch from its first voxel on; where the patch is no multiple of the block, the
last blocks are cut off at its border. Of the N blocks of a patch exactly int(ratio * N) are hidden, drawn for
each patch by itself. The target is the patch as it is, in normalised intensities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from misfm.batches import Batch, Placement, sent
from misfm.errors import ConfigError
from misfm.losses import masked_mean
from misfm.pretext.base import PretextTask
from misfm.settings import PositiveShape
from misfm.volume import Shape, triple

PUBLISHED_BLOCK, FEWEST_BLOCKS = 16, 4


@dataclass(frozen=True, kw_only=True)
class MaskedPatches(Batch):
    """``targets`` are the whole patches (B, C, D, H, W); in ``inputs`` hidden voxels are 0.

    The only ``context`` is the mask (B, D, H, W) bool of all hidden voxels, padding or not.

    Attributes:
        masked: (B, D, H, W) bool, hidden voxels that are real (``Placement.real``): those to predict.
        visible: (B, D, H, W) bool, other voxels that are real.
    """

    masked: Tensor
    visible: Tensor


class MaskedBlocks(PretextTask):
    """Predict the voxels of hidden blocks; subclasses bring the network."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of hidden blocks (published: 0.75)."""
    block_size: PositiveShape | None = None
    """Voxels of a block along (D, H, W). By default, along each axis, the largest power of two that is at
    most 16 (published for 160^3) and leaves four blocks."""

    def blocks_of(self, patch_size: Shape) -> Shape:
        """Voxels along (D, H, W) of the blocks of patches of that size."""
        return self.block_size or default_block_size(patch_size)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> MaskedPatches:
        """Hide blocks of each patch; see the base class.

        Raises:
            ConfigError: the blocks are so large that none would be hidden.
        """
        images = patches.flatten(0, 1)
        block_size = self.blocks_of(patch_size)
        blocks = sample_blocks(len(images), grid_size(patch_size, block_size), self.mask_ratio, generator)
        hidden = spread_blocks(sent(blocks, images.device), block_size, patch_size)
        real = placement.real(patch_size, images.device).flatten(0, 1)
        return MaskedPatches(
            inputs=images.masked_fill(hidden[:, None], 0.0),
            targets=images,
            context=(hidden,),
            masked=hidden & real,
            visible=~hidden & real,
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Mean squared error over hidden voxels that are real."""
        assert isinstance(batch, MaskedPatches)
        return {"reconstruction": masked_mean((outputs.float() - batch.targets).square(), batch.masked)}

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """Squared errors over the hidden voxels.

        ``masked_error`` is the network's, ``mean_error`` that of the batch's mean visible intensity.
        """
        assert isinstance(batch, MaskedPatches)
        mean = masked_mean(batch.targets, batch.visible)
        return {
            "masked_error": float(self.loss(outputs.detach(), batch)["reconstruction"]),
            "mean_error": float(masked_mean((mean - batch.targets).square(), batch.masked)),
        }


def default_block_size(patch_size: Shape) -> Shape:
    """Along each axis the largest power of two that is at most 16 and leaves four blocks; at least 1."""
    sides = (min(PUBLISHED_BLOCK, max(side // FEWEST_BLOCKS, 1)) for side in patch_size)
    return triple(1 << (side.bit_length() - 1) for side in sides)


def grid_size(patch_size: Shape, block_size: Shape) -> Shape:
    """Blocks along (D, H, W), those cut off at the border included."""
    return triple(-(-side // block) for side, block in zip(patch_size, block_size, strict=True))


def num_hidden_blocks(grid: Shape, ratio: float) -> int:
    """Return how many blocks of a patch are hidden, int(ratio * N)."""
    return int(ratio * prod(grid))


def sample_blocks(num_samples: int, grid: Shape, ratio: float, generator: Generator) -> Tensor:
    """Draw which blocks to hide: (num_samples, *grid) bool with exactly int(ratio * N) hidden in each sample.

    Args:
        num_samples: independent draws.
        grid: blocks along (D, H, W), N in all.
        ratio: in (0, 1).
        generator: of the CPU.

    Raises:
        ConfigError: not a single block would be hidden.
    """
    total, count = prod(grid), num_hidden_blocks(grid, ratio)
    if count == 0:
        raise ConfigError(
            f"A patch of {total} blocks has none to hide at a mask ratio of {ratio}: choose a smaller "
            "block_size or a larger mask_ratio."
        )
    hidden = torch.zeros(num_samples, total, dtype=torch.bool)
    for sample in hidden:
        sample[torch.randperm(total, generator=generator)[:count]] = True
    return hidden.view(num_samples, *grid)


def spread_blocks(blocks: Tensor, block_size: Shape, patch_size: Shape) -> Tensor:
    """Give each voxel the value of its block: (B, *grid) -> (B, *patch_size), on the same device."""
    for axis, block in enumerate(block_size, start=1):
        blocks = blocks.repeat_interleave(block, dim=axis)
    return blocks[:, : patch_size[0], : patch_size[1], : patch_size[2]]
