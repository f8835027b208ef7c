"""Transformer blocks in the style of EVA-02 (arXiv 2303.11331) over a 3D grid, as Primus stacks them.

Attention knows places through rotary position embedding: each axis of the grid turns a third of every head.
The angles depend on the grid alone, so they are tabled once for all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.models.drop_path import drop_path

NUM_AXES = 3
SLOWEST_WAVELENGTH = 10_000.0
HIDDEN_RATIO = 8 / 3
LAYER_SCALE = 0.1
INIT_STD = 0.02


def rotary_table(grid: Sequence[int], head_dim: int) -> Tensor:
    """Cosines and sines of the angle of each token, for each pair of channels of a head.

    Args:
        grid: tokens along each axis; tokens are flattened row-major.
        head_dim: channels of a head, a multiple of 6: a pair for each frequency of each axis.

    Returns:
        (2, tokens, head_dim / 2) on the CPU; the first third of the pairs turns with the first axis, and so
        on.
    """
    num_frequencies = head_dim // (2 * NUM_AXES)
    exponents, *axes = (
        torch.arange(length, dtype=torch.float64, device="cpu") for length in (num_frequencies, *grid)
    )
    exponents = exponents / num_frequencies
    places = torch.meshgrid(*axes, indexing="ij")
    angles = torch.stack(places, dim=-1).flatten(0, 2)[..., None] * SLOWEST_WAVELENGTH**-exponents
    return torch.stack((angles.cos(), angles.sin())).flatten(-2).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels (..., tokens, head_dim) by a :func:`rotary_table`, in the type of ``x``."""
    cos, sin = rotation
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class RotaryAttention(nn.Module):
    """Attention among all tokens, (B, N, C) -> the same; its result is normed before the projection."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        # A bias of the keys would add the same to all scores of a query, which softmax takes out again.
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Mix the tokens; ``rotation`` is the table's part for them, broadcast over batch and heads."""
        query = rotate(self._heads(self.q_proj(x)), rotation)
        key = rotate(self._heads(self.k_proj(x)), rotation)
        mixed = F.scaled_dot_product_attention(query, key, self._heads(self.v_proj(x)))
        return cast(Tensor, self.proj(self.norm(mixed.transpose(1, 2).flatten(2))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class GatedMlp(nn.Module):
    """SwiGLU with a norm on the hidden channels, (..., C) -> the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(channels, hidden)
        self.fc1_x = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return cast(Tensor, self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x))))


class EvaBlock(nn.Module):
    """Attention and MLP, each pre-normed, scaled per channel and added, (B, N, C) -> the same.

    The names of its parameters are the published ones.

    Args:
        channels: C.
        num_heads: attention heads, each of C / num_heads channels.
        drop_path: probability with which a sample skips a branch in training.
    """

    def __init__(self, channels: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = RotaryAttention(channels, num_heads)
        self.gamma_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GatedMlp(channels, int(channels * HIDDEN_RATIO))
        self.gamma_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def initialise(self, index: int) -> None:
        """Draw weights as published; what block ``index`` >= 1 adds to the tokens shrinks with it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for last in (self.attn.proj, self.mlp.fc2):
                last.weight.div_(math.sqrt(2 * index))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Add both branches."""
        branch = self.gamma_1 * self.attn(self.norm1(x), rotation)
        x = x + drop_path(branch, self.drop_path, training=self.training)
        branch = self.gamma_2 * self.mlp(self.norm2(x))
        return x + drop_path(branch, self.drop_path, training=self.training)
