"""Primus: a plain transformer over blocks of 8 x 8 x 8 voxels (arXiv 2503.01835).

A strided convolution makes a token of every block, learnt and rotary embeddings say where it lies, attention
runs among all tokens, and transposed convolutions lead from tokens back to voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import index
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.base import NETWORKS, Backbone, Demand, differences
from misfm.models.eva import INIT_STD, NUM_AXES, EvaBlock, rotary_table
from misfm.models.heads import SegmentationHead
from misfm.registry import closest
from misfm.volume import Shape

TOKEN_SIDE = 8
"""Voxels along each side of a token."""
NUM_DOUBLINGS = 3
"""Steps by 2 from tokens to voxels."""

TokenOrder = Literal["whd", "hwd"]
TOKEN_AXES: dict[TokenOrder, Shape] = {"whd": (0, 1, 2), "hwd": (1, 0, 2)}
"""Which axis of (D, H, W) comes first, second and third where the grid is flattened. Published code calls the
axes of a patch (w, h, d) in the order in which it holds them."""


@dataclass(frozen=True)
class PrimusSettings:
    """Size of the transformer.

    Attributes:
        embed_dim: channels of a token.
        depth: blocks.
        num_heads: attention heads; each has embed_dim / num_heads channels, a multiple of 6.
        drop_path: probability of skipping a branch in the last block; it grows linearly from 0 in the first.
    """

    embed_dim: int
    depth: int
    num_heads: int
    drop_path: float = 0.0

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.embed_dim // self.num_heads


class PrimusEncoder(nn.Module):
    """Patch (B, C, D, H, W) -> [features (B, E, D/8, H/8, W/8)].

    Args:
        in_channels: C.
        grid: tokens along (D, H, W).
        settings: size of the transformer.
        token_order: order in which the grid is flattened; the position embedding is stored in it.
    """

    rotation: Tensor

    def __init__(
        self, in_channels: int, grid: Shape, settings: PrimusSettings, token_order: TokenOrder
    ) -> None:
        super().__init__()
        self.grid = grid
        self.head_dim = settings.head_dim
        self.token_order = token_order
        self.stem = nn.Conv3d(in_channels, settings.embed_dim, TOKEN_SIDE, stride=TOKEN_SIDE)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(grid), settings.embed_dim))
        rates = [settings.drop_path * i / max(settings.depth - 1, 1) for i in range(settings.depth)]
        self.blocks = nn.ModuleList(
            EvaBlock(settings.embed_dim, settings.num_heads, drop_path) for drop_path in rates
        )
        self.norm = nn.LayerNorm(settings.embed_dim)
        self.register_buffer("rotation", self._rotary_table().to(self.pos_embed.device), persistent=False)
        initialise_conv(self.stem)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)
        for number, block in enumerate(self.blocks, start=1):
            cast(EvaBlock, block).initialise(number)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of all tokens, on their grid."""
        return [self.to_grid(self.encode(self.embed(x)))]

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, N, E) of a patch (B, C, D, H, W), without positions."""
        return self.swapped(self.stem(x)).flatten(2).transpose(1, 2)

    def encode(self, tokens: Tensor, keep_indices: Tensor | None = None) -> Tensor:
        """Run the transformer.

        Args:
            tokens: (B, N, E) from :meth:`embed`.
            keep_indices: (B, K) int64, the tokens of each sample that take part, each at its own place; all
                by default.

        Returns:
            (B, K, E), or (B, N, E) of all.
        """
        tokens, rotation = tokens + self.pos_embed, self.rotation
        if keep_indices is not None:
            tokens = tokens.gather(1, keep_indices[..., None].expand(-1, -1, tokens.shape[2]))
            rotation = rotation[:, keep_indices].unsqueeze(2)  # the same for all heads of a sample
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return cast(Tensor, self.norm(tokens))

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Features (B, E, D/8, H/8, W/8) of all tokens (B, N, E)."""
        columns = tokens.transpose(1, 2)
        return self.swapped(columns.reshape(*columns.shape[:2], *self._ordered_grid()))

    def order_tokens(self, token_order: TokenOrder) -> None:
        """Flatten the grid in another order from now on; parameters stay as they are."""
        self.token_order = token_order
        self.rotation.copy_(self._rotary_table())

    def _rotary_table(self) -> Tensor:
        return rotary_table(self._ordered_grid(), self.head_dim)

    def _ordered_grid(self) -> list[int]:
        return [self.grid[axis] for axis in TOKEN_AXES[self.token_order]]

    def swapped(self, features: Tensor) -> Tensor:
        """Bring (B, E, D, H, W) into the order of tokens, or back: either order is its own inverse."""
        return features.permute(0, 1, *(2 + axis for axis in TOKEN_AXES[self.token_order]))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel of (B, C, D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.movedim(1, 4)).movedim(4, 1)


class PatchDecoder(nn.Sequential):
    """Features (B, E, D/8, H/8, W/8) -> logits (B, K, D, H, W) by three transposed convolutions.

    Widths shrink by one ratio from E to twice the number of classes, rounded to multiples of 8.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        ratio = (embed_dim / (2 * num_classes)) ** (1 / NUM_DOUBLINGS)
        inner = [embed_dim / ratio**step for step in range(1, NUM_DOUBLINGS)]
        # The published rounding; the nudge lifts halves, and what floats leave just below them.
        widths = [embed_dim, *(max(8, 8 * round((width + 1e-6) / 8)) for width in inner)]
        steps: list[nn.Module] = [
            nn.Sequential(
                nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2),
                ChannelNorm(fine, eps=1e-6),
                nn.GELU(),
            )
            for coarse, fine in pairwise(widths)
        ]
        super().__init__(*steps, nn.ConvTranspose3d(widths[-1], num_classes, kernel_size=2, stride=2))
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose3d):
                initialise_conv(module)


def initialise_conv(conv: nn.Conv3d | nn.ConvTranspose3d) -> None:
    """He initialisation for a slope of 0.01, as published."""
    nn.init.kaiming_normal_(conv.weight, a=1e-2)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class Primus(Backbone):
    """See :func:`build_primus`.

    The way up to voxels has widths that depend on the number of classes, so all of it is the head, the
    decoder passes features on and has no parameters, and ``strides`` are those of the logits: there is one
    level of features, 8 times coarser.
    """

    encoder: PrimusEncoder

    def __init__(
        self, in_channels: int, patch_size: Shape, settings: PrimusSettings, token_order: TokenOrder | None
    ) -> None:
        super().__init__()
        d, h, w = (side // TOKEN_SIDE for side in patch_size)
        self.grid = (d, h, w)
        self.encoder = PrimusEncoder(in_channels, self.grid, settings, token_order or "whd")
        self.decoder = nn.Identity()
        self.in_channels = in_channels
        self.encoder_channels, self.encoder_strides = (settings.embed_dim,), ((TOKEN_SIDE,) * 3,)
        self.channels = self.encoder_channels
        self.strides = ((1, 1, 1),)
        self.input_size = patch_size
        self.num_heads = settings.num_heads
        self.order_is_open = token_order is None
        self.options = {"token_order": self.encoder.token_order}

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """The published patch decoder; there is one level, whatever ``num_outputs`` says."""
        return SegmentationHead([PatchDecoder(self.channels[0], num_classes)])

    def token_axes(self, recorded: Mapping[str, Any] | None) -> Shape:
        """The order of tokens after :meth:`adopt`."""
        return TOKEN_AXES[self._order_with(recorded)]

    def adopt(self, recorded: Mapping[str, Any] | None, *, source: str = "The weights") -> list[str]:
        """Take over the token order of weights unless one was asked for; warn where attention differs."""
        order = self._order_with(recorded)
        if order != self.encoder.token_order:
            self.encoder.order_tokens(order)
            self.options["token_order"] = order
        ours = {"token_order": order, "num_heads": self.num_heads}
        return differences(recorded, ours)

    def _order_with(self, recorded: Mapping[str, Any] | None) -> TokenOrder:
        theirs = (recorded or {}).get("token_order")
        return theirs if self.order_is_open and theirs in TOKEN_AXES else self.encoder.token_order


@NETWORKS.register("primus", demand=Demand(2808, multiple=TOKEN_SIDE, is_fixed=True, recomputed=306))
def build_primus(
    in_channels: int,
    patch_size: Shape,
    *,
    embed_dim: int = 864,
    depth: int = 16,
    num_heads: int = 12,
    drop_path: float = 0.0,
    token_order: TokenOrder | Literal["auto"] = "auto",
) -> Primus:
    """Build a Primus; ``primus-s``, ``-b``, ``-m`` and ``-l`` are published sizes, M the default.

    Args:
        in_channels: channels of the image.
        patch_size: voxels along (D, H, W) of the only patches it takes; multiples of 8. Published: 160 each.
        embed_dim: channels of a token.
        depth: transformer blocks.
        num_heads: attention heads, each of a multiple of 6 channels.
        drop_path: probability of skipping a branch in the last block; published: 0.2 in pretraining, 0 in
            fine-tuning.
        token_order: how the grid is flattened: ``"whd"`` row-major, ``"hwd"`` with the first two axes
            swapped, as most published weights were trained; ``"auto"`` is that of the weights once some are
            loaded, and ``"whd"`` before.

    Raises:
        ConfigError: options that do not fit together, or a patch size it cannot take.
    """
    settings = PrimusSettings(index(embed_dim), index(depth), index(num_heads), float(drop_path))
    _check_settings(settings)
    orders = ["auto", *get_args(TokenOrder)]
    if token_order not in orders:
        raise ConfigError(f"Primus has no token order '{token_order}'; {closest(str(token_order), orders)}")
    nearest = tuple(max(1, round(side / TOKEN_SIDE)) * TOKEN_SIDE for side in patch_size)
    if nearest != patch_size:
        raise ConfigError(
            f"Primus takes patches whose sides are multiples of {TOKEN_SIDE}, got {patch_size}; "
            f"the nearest size that works is {nearest}."
        )
    return Primus(in_channels, patch_size, settings, None if token_order == "auto" else token_order)


def _check_settings(settings: PrimusSettings) -> None:
    if min(settings.embed_dim, settings.depth, settings.num_heads) < 1:
        raise ConfigError("Primus's embed_dim, depth and num_heads must all be at least 1.")
    if settings.embed_dim % (2 * NUM_AXES * settings.num_heads):
        raise ConfigError(
            f"Primus cannot share {settings.embed_dim} channels among {settings.num_heads} heads: each needs "
            f"a multiple of {2 * NUM_AXES}, a pair for every axis."
        )
    if not 0 <= settings.drop_path < 1:
        raise ConfigError(f"Primus's drop_path is at least 0 and below 1, got {settings.drop_path}.")


PRESETS = {
    "primus-s": PrimusSettings(embed_dim=396, depth=12, num_heads=6),
    "primus-b": PrimusSettings(embed_dim=792, depth=12, num_heads=12),
    "primus-m": PrimusSettings(embed_dim=864, depth=16, num_heads=12),
    "primus-l": PrimusSettings(embed_dim=1056, depth=24, num_heads=16),
}
"""The published sizes."""
SAVED = {"primus-s": (986, 126), "primus-b": (1950, 254), "primus-m": (2808, 306), "primus-l": (5095, 438)}
"""Bytes a voxel, kept and recomputed, see :class:`misfm.models.base.Demand`."""

for _name, _size in PRESETS.items():
    _kept, _recomputed = SAVED[_name]
    _demand = Demand(_kept, multiple=TOKEN_SIDE, is_fixed=True, recomputed=_recomputed)
    NETWORKS.register(_name, demand=_demand)(
        partial(build_primus, embed_dim=_size.embed_dim, depth=_size.depth, num_heads=_size.num_heads)
    )
