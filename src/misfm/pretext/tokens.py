"""Masks for networks of tokens: which tokens are hidden, and what blocks have to be like."""

from __future__ import annotations

from math import prod
from typing import cast

from torch import Tensor

from misfm.errors import ConfigError
from misfm.models.base import Backbone
from misfm.models.primus import TOKEN_SIDE, Primus, PrimusEncoder
from misfm.pretext.masks import MaskedBlocks, grid_size, num_hidden_blocks
from misfm.volume import Shape


def require_primus(backbone: Backbone, task: str) -> Primus:
    """Return the backbone as the Primus it is; ConfigError where it is another network."""
    if not isinstance(backbone, Primus):
        raise ConfigError(
            f"The task {task} works on tokens, which {type(backbone).__name__} does not have: take a primus "
            "network, or the task mae."
        )
    return backbone


def require_whole_tokens(task: MaskedBlocks, backbone: Primus) -> None:
    """Raise ConfigError unless the task's blocks are made of whole tokens and the patch of whole blocks.

    Then all samples hide equally many tokens, too.
    """
    patch_size = cast(Shape, backbone.input_size)
    block_size = task.blocks_of(patch_size)
    if any(block % TOKEN_SIDE or side % block for side, block in zip(patch_size, block_size, strict=True)):
        raise ConfigError(
            f"Primus has tokens of {TOKEN_SIDE} voxels a side, and a patch of {patch_size} voxels cannot be "
            f"cut into blocks of {block_size} made of whole tokens: set the task's block_size to "
            f"({TOKEN_SIDE}, {TOKEN_SIDE}, {TOKEN_SIDE}), as published."
        )


def num_hidden_tokens(task: MaskedBlocks, backbone: Primus) -> int:
    """Return how many tokens of each patch the task hides; its blocks are made of whole ones."""
    patch_size = cast(Shape, backbone.input_size)
    block_size = task.blocks_of(patch_size)
    blocks = num_hidden_blocks(grid_size(patch_size, block_size), task.mask_ratio)
    return blocks * prod(block // TOKEN_SIDE for block in block_size)


def hidden_tokens(encoder: PrimusEncoder, hidden: Tensor) -> Tensor:
    """Which tokens (B, N) bool are hidden by a mask of voxels (B, D, H, W) made of whole tokens."""
    corners = hidden[:, None, ::TOKEN_SIDE, ::TOKEN_SIDE, ::TOKEN_SIDE]
    return encoder.swapped(corners).flatten(1)
