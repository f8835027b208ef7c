"""Shifted-window attention in 3D with a relative position bias (arXiv 2103.14030), as PCT-Net uses it.

Padding, rolling and cutting a grid into windows only move tokens. So the layout of a grid is worked out
once, as the token of every window slot and the slot of every token, and a forward pass is two look-ups
around one fused attention for each distinct mask (at most eight, however many windows there are).
Training on a CPU takes :mod:`misfm.models.window_attention` instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.models.cpu import Dropout
from misfm.models.drop_path import drop_path
from misfm.models.window_attention import WindowLayout, attend_in_turn

Shape = tuple[int, int, int]
PositionIndex = Literal["textbook", "mis-fm"]

SEPARATED = -100.0  # added to the attention between tokens that are neighbours only through the roll
DROP_PATH = 0.2  # constant over the blocks, as published


@dataclass(frozen=True)
class WindowSettings:
    """How the attention of one level is laid out.

    Attributes:
        grid: tokens along (D, H, W); the only grid the attention takes.
        window: tokens along each side of a window; a grid with a side no longer than this gets windows
            of its shortest side and no shift.
        num_heads: attention heads.
        dropout: probability, in [0, 1), for attention weights and outputs.
        position_index: which row of the bias table an offset between two tokens takes; see
            :func:`relative_position_index`.
    """

    grid: Shape
    window: int
    num_heads: int
    dropout: float = 0.0
    position_index: PositionIndex = "textbook"

    @property
    def side(self) -> int:
        """Tokens along a window as built."""
        return min(self.window, *self.grid)

    @property
    def shift(self) -> int:
        """Tokens by which every second block moves its windows."""
        return self.window // 2 if min(self.grid) > self.window else 0


def lay_out(grid: Shape, side: int, shift: int) -> WindowLayout:
    """Pad ``grid`` behind its end to whole windows, roll it by ``-shift`` and cut it into windows."""
    num_tokens = math.prod(grid)
    padding = [-length % side for length in grid]
    tokens = torch.arange(num_tokens, device="cpu").view(grid)
    padded = F.pad(tokens, [0, padding[2], 0, padding[1], 0, padding[0]], value=num_tokens)
    slots = _partition(padded.roll((-shift,) * 3, dims=(0, 1, 2)), side)

    region = torch.zeros(padded.shape, dtype=torch.int64, device="cpu")
    if shift:
        for axis, length in enumerate(padded.shape):
            label = torch.zeros(length, dtype=torch.int64, device="cpu")
            label[-side:] = 1
            label[-shift:] = 2
            region = 3 * region + label.view([-1 if i == axis else 1 for i in range(3)])
    patterns, pattern_of = torch.unique(_partition(region, side), dim=0, return_inverse=True)

    to_windows = slots[pattern_of.argsort(stable=True)].flatten()
    separated = patterns[:, :, None] != patterns[:, None, :]
    return WindowLayout(
        to_windows,
        to_windows.argsort(stable=True)[:num_tokens],
        torch.zeros(separated.shape, device="cpu").masked_fill(separated, SEPARATED),
        torch.bincount(pattern_of).tolist(),
    )


def _partition(volume: Tensor, side: int) -> Tensor:
    """(D, H, W) -> (windows, side^3)."""
    depth, height, width = (length // side for length in volume.shape)
    blocks = volume.view(depth, side, height, side, width, side)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, side**3)


def relative_position_index(side: int, kind: PositionIndex) -> Tensor:
    """Row of the bias table, (side^3, side^3), for each pair of query and key in a window.

    ``"textbook"`` gives each of the (2 side - 1)^3 offsets its own row. ``"mis-fm"`` is the index that the
    published PCT-Net was trained with: its depth stride is 3 side - 1, so that several offsets share a row.
    """
    axis = torch.arange(side, device="cpu")
    points = torch.cartesian_prod(axis, axis, axis)
    offsets = points[:, None] - points[None, :] + side - 1
    span = 2 * side - 1
    depth_stride = span * span if kind == "textbook" else 3 * side - 1
    return offsets[..., 0] * depth_stride + offsets[..., 1] * span + offsets[..., 2]


class WindowAttention(nn.Module):
    """Self-attention within windows: tokens (B, D*H*W, C) -> the same shape.

    Args:
        channels: C, a multiple of the number of heads.
        settings: grid and windows.
        shifted: move the windows by half their side.
    """

    to_windows: Tensor
    to_tokens: Tensor
    masks: Tensor
    position_index: Tensor

    def __init__(self, channels: int, settings: WindowSettings, *, shifted: bool) -> None:
        super().__init__()
        side = settings.side
        self.num_heads = settings.num_heads
        self.dropout = settings.dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.empty((2 * side - 1) ** 3, settings.num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

        layout = lay_out(settings.grid, side, settings.shift if shifted else 0)
        self.window_counts = layout.counts
        index = relative_position_index(side, settings.position_index)
        for name, buffer in [
            ("to_windows", layout.to_windows),
            ("to_tokens", layout.to_tokens),
            ("masks", layout.masks),
            ("position_index", index),
        ]:
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window.

        Padding tokens are zeros that nothing masks, as published: their keys and values are the bias of
        ``qkv``. Projecting before the look-up and after it spares the padding both matrix products.
        """
        batch, _, channels = x.shape
        head_width = channels // self.num_heads
        qkv = self.qkv(F.pad(x, [0, 0, 0, 1])).view(batch, -1, 3, self.num_heads, head_width)
        bias = self.bias_table[self.position_index].permute(2, 0, 1)
        if self.training and x.device.type == "cpu":
            layout = WindowLayout(self.to_windows, self.to_tokens, self.masks, self.window_counts)
            attended = attend_in_turn(qkv, bias, layout, self.dropout)
        else:
            attended = self._attend_at_once(qkv, bias)
        return cast(Tensor, self.proj(attended))

    def _attend_at_once(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """(B, tokens + 1, 3, heads, c) -> (B, tokens, heads * c)."""
        batch, _, _, heads, width = qkv.shape
        windows = qkv.index_select(1, self.to_windows).view(batch, -1, len(bias[0]), 3, heads, width)
        windows = windows.permute(3, 0, 1, 4, 2, 5)  # (3, B, windows, heads, slots, c)
        attended = [
            self._attend(group, bias + mask)
            for mask, group in zip(self.masks, torch.split(windows, self.window_counts, dim=2), strict=True)
        ]
        out = torch.cat(attended, dim=1).transpose(2, 3).reshape(batch, -1, heads * width)
        return out.index_select(1, self.to_tokens)

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """(3, B, M, heads, N, c) -> (B, M, heads, N, c), for M windows with the same bias (heads, N, N)."""
        query, key, value = qkv.flatten(1, 2)
        dropout = self.dropout if self.training else 0.0
        mask = bias[None].to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return out.reshape(qkv.shape[1:])


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens (B, D*H*W, C)."""

    def __init__(self, channels: int, settings: WindowSettings, *, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, settings, shifted=shifted)
        self.dropout = Dropout(settings.dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            Dropout(settings.dropout),
            nn.Linear(4 * channels, channels),
            Dropout(settings.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Both residual branches; while training, each is left out of a sample with probability 0.2."""
        branch = self.dropout(self.attention(self.norm1(x)))
        x = x + drop_path(branch, DROP_PATH, training=self.training)
        return x + drop_path(self.mlp(self.norm2(x)), DROP_PATH, training=self.training)
