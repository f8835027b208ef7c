"""PCT-Net: a U-shaped network whose coarse levels add window attention to convolutions (arXiv 2306.16925).

Five levels. Levels 0 and 1 are convolutions only; levels 2 to 4 are PCT blocks, a convolutional and a
transformer branch on the same input, summed. Every convolution follows batch norm and PReLU. Depth may keep
its resolution in level 0 or in levels 0 and 1 (``anisotropy`` 1 and 2), whose kernels are then in-plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from misfm.errors import ConfigError, WeightsError
from misfm.models.anisotropy import ISOTROPIC, conv, steps_of
from misfm.models.base import NETWORKS, Backbone, Demand, total_strides
from misfm.models.cpu import Dropout, PointwiseConv, PReLU, StepUp, fast_layout
from misfm.models.heads import SegmentationHead
from misfm.models.swin import PositionIndex, SwinBlock, WindowSettings
from misfm.registry import closest
from misfm.volume import Shape, triple

LARGEST_WINDOW = 12
"""Tokens along a side: 12 MB of scores for each head and window."""
FIRST_PCT_LEVEL = 2


def preactivated(channels: int, layer: nn.Module) -> nn.Sequential:
    """Batch norm, PReLU, then ``layer``."""
    return nn.Sequential(nn.BatchNorm3d(channels), PReLU(), layer)


def conv_pair(channels: int, step: Shape = ISOTROPIC, dropout: float = 0.0) -> nn.Sequential:
    """Two pre-activated convolutions with dropout between them; no residual."""
    return nn.Sequential(
        *preactivated(channels, conv(channels, channels, step)).children(),
        *preactivated(channels, Dropout(dropout)).children(),
        conv(channels, channels, step),
    )


def down(in_channels: int, out_channels: int, pooling: Shape, step: Shape = ISOTROPIC) -> nn.Sequential:
    """Max pooling, then a pre-activated convolution."""
    return nn.Sequential(
        nn.MaxPool3d(pooling), preactivated(in_channels, conv(in_channels, out_channels, step))
    )


class UpBlock(nn.Module):
    """Transposed convolution by ``step``, concatenation behind the skip, convolution back to its width."""

    def __init__(self, fine: int, coarse: int, step: Shape) -> None:
        super().__init__()
        self.up = preactivated(coarse, StepUp(coarse, fine, step))
        self.conv = preactivated(2 * fine, conv(2 * fine, fine, step))

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """(B, fine, ...) and (B, coarse, ...) -> (B, fine, ...)."""
        return cast(Tensor, self.conv(torch.cat([skip, self.up(x)], dim=1)))


class PctBlock(nn.Module):
    """Convolutions plus window attention on the same input, (B, C, D, H, W) -> the same shape.

    Args:
        channels: C.
        depth: blocks of attention; every second one with shifted windows.
        windows: grid and windows; (D, H, W) must equal its grid.
    """

    def __init__(self, channels: int, depth: int, windows: WindowSettings) -> None:
        super().__init__()
        self.conv = conv_pair(channels, dropout=windows.dropout)
        self.dropout = Dropout(windows.dropout)
        self.transformer = nn.Sequential(
            *(SwinBlock(channels, windows, shifted=index % 2 == 1) for index in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both branches; no norm follows."""
        tokens = self.transformer(self.dropout(x.flatten(2).transpose(1, 2)))
        return cast(Tensor, self.conv(x) + tokens.transpose(1, 2).reshape(x.shape))


class PctEncoder(nn.Module):
    """Patch (B, C, D, H, W) -> features of levels 0 to 4."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        steps: Sequence[Shape],
        depths: Sequence[int],
        windows: Sequence[WindowSettings],
    ) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.project = conv(in_channels, c0, steps[0])
        self.conv0 = conv_pair(c0, steps[0])
        self.down1 = down(c0, c1, steps[0], steps[1])
        self.conv1 = conv_pair(c1, steps[1])
        self.down2 = down(c1, c2, steps[1])
        self.block2 = PctBlock(c2, depths[0], windows[0])
        self.down3 = down(c2, c3, steps[2])
        self.block3 = PctBlock(c3, depths[1], windows[1])
        self.down4 = down(c3, c4, steps[3])
        self.block4 = PctBlock(c4, depths[2], windows[2])

    def forward(self, x: Tensor) -> list[Tensor]:
        """All features, high to low resolution."""
        x0 = self.conv0(fast_layout(self.project(x)))
        x1 = self.conv1(self.down1(x0))
        x2 = self.block2(self.down2(x1))
        x3 = self.block3(self.down3(x2))
        return [x0, x1, x2, x3, self.block4(self.down4(x3))]


class PctDecoder(nn.Module):
    """Features of levels 0 to 4 -> features of levels 0 to 3."""

    def __init__(
        self,
        channels: Sequence[int],
        steps: Sequence[Shape],
        depths: Sequence[int],
        windows: Sequence[WindowSettings],
    ) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.up3 = UpBlock(c3, c4, steps[3])
        self.block3 = PctBlock(c3, depths[1], windows[1])
        self.up2 = UpBlock(c2, c3, steps[2])
        self.block2 = PctBlock(c2, depths[0], windows[0])
        self.up1 = UpBlock(c1, c2, steps[1])
        self.conv1 = conv_pair(c1, steps[1])
        self.up0 = UpBlock(c0, c1, steps[0])
        self.conv0 = conv_pair(c0, steps[0])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each level, finest first."""
        x0, x1, x2, x3, x4 = features
        d3 = self.block3(self.up3(x3, x4))
        d2 = self.block2(self.up2(x2, d3))
        d1 = self.conv1(self.up1(x1, d2))
        return [self.conv0(self.up0(x0, d1)), d1, d2, d3]


class PCTNet(Backbone):
    """See :func:`build_pctnet`."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        windows: Sequence[WindowSettings],
        anisotropy: int,
    ) -> None:
        super().__init__()
        steps = steps_of("PCT-Net", anisotropy)
        self.encoder = PctEncoder(in_channels, channels, steps, depths, windows)
        self.decoder = PctDecoder(channels, steps, depths, windows)
        self.in_channels, self.stem_weight = in_channels, "encoder.project.weight"
        self.encoder_channels, self.encoder_strides = tuple(channels), total_strides(steps)
        self.channels, self.strides = self.encoder_channels[:-1], self.encoder_strides[:-1]
        coarsest = self.strides[FIRST_PCT_LEVEL]
        self.input_size = triple(n * s for n, s in zip(windows[0].grid, coarsest, strict=True))
        self.anisotropy = anisotropy
        self.position_index: PositionIndex = windows[0].position_index
        # The sides as built: a larger patch shall have the bias tables that these windows have.
        self.options = {"window_sizes": [level.side for level in windows]}

    def adopt(self, recorded: Mapping[str, Any] | None, *, source: str = "The weights") -> list[str]:
        """Refuse weights that learnt with another position index, which older files of ours do not record."""
        theirs = self.position_index if recorded is None else recorded.get("position_index", "textbook")
        if theirs != self.position_index:
            raise WeightsError(
                f"{source} was trained with the position index '{theirs}' and this network has "
                f"'{self.position_index}'; create the network with position_index=\"{theirs}\"."
            )
        return []

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """Batch norm, PReLU and a 1x1x1 convolution for each level."""
        return SegmentationHead(
            [
                preactivated(width, PointwiseConv(width, num_classes, 1))
                for width in self.channels[:num_outputs]
            ]
        )


@NETWORKS.register("pctnet", demand=Demand(5681, multiple=16, is_fixed=True, recomputed=1424))
def build_pctnet(
    in_channels: int,
    patch_size: Shape,
    *,
    channels: Sequence[int] = (24, 48, 128, 256, 512),
    depths: Sequence[int] = (2, 2, 2),
    num_heads: Sequence[int] = (4, 8, 16),
    window_sizes: Sequence[int] = (6, 6, 6),
    anisotropy: int = 1,
    dropout: float = 0.2,
    position_index: PositionIndex = "textbook",
) -> PCTNet:
    """Build a PCT-Net; the defaults are the published configuration.

    Args:
        in_channels: channels of the image.
        patch_size: voxels along (D, H, W) of the only patches it takes; multiples of (16, 16, 16),
            (8, 16, 16) or (4, 16, 16) for an anisotropy of 0, 1 or 2. Published: (64, 128, 128).
        channels: features of levels 0 to 4.
        depths: blocks of attention in levels 2 to 4.
        num_heads: attention heads in levels 2 to 4.
        window_sizes: side of the attention windows, in features, in levels 2 to 4.
        anisotropy: how many of the finest levels keep the depth: 0, 1 or 2.
        dropout: probability, in [0, 1), in levels 2 to 4.
        position_index: ``"textbook"``, or ``"mis-fm"`` for weights published with MIS-FM.

    Raises:
        ConfigError: options that do not fit together, or a patch size it cannot take.
    """
    _check_options(channels, depths, num_heads, window_sizes)
    if not 0 <= dropout < 1:
        raise ConfigError(f"Dropout is a probability of at least 0 and below 1, got {dropout}.")
    if position_index not in get_args(PositionIndex):
        hint = closest(position_index, list(get_args(PositionIndex)))
        raise ConfigError(f"PCT-Net has no position index '{position_index}'; {hint}")
    strides = total_strides(steps_of("PCT-Net", anisotropy))
    _check_patch_size(patch_size, strides[-1], anisotropy)
    grids = [
        triple(n // s for n, s in zip(patch_size, stride, strict=True))
        for stride in strides[FIRST_PCT_LEVEL:]
    ]
    windows = [
        WindowSettings(grid, window, heads, dropout, position_index)
        for grid, window, heads in zip(grids, window_sizes, num_heads, strict=True)
    ]
    largest = max(level.side for level in windows)
    if largest > LARGEST_WINDOW:
        raise ConfigError(
            f"PCT-Net's window_sizes are at most {LARGEST_WINDOW}, got {largest}: attention takes memory "
            "with the sixth power of it."
        )
    return PCTNet(in_channels, channels, depths, windows, anisotropy)


def _check_options(
    channels: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], window_sizes: Sequence[int]
) -> None:
    if len(channels) != 5 or not len(depths) == len(num_heads) == len(window_sizes) == 3:
        raise ConfigError(
            "PCT-Net takes five channels and three depths, num_heads and window_sizes, "
            f"got {tuple(channels)}, {tuple(depths)}, {tuple(num_heads)} and {tuple(window_sizes)}."
        )
    if min(*channels, *depths, *num_heads, *window_sizes) < 1:
        raise ConfigError("PCT-Net's channels, depths, num_heads and window_sizes must all be at least 1.")
    for width, heads in zip(channels[FIRST_PCT_LEVEL:], num_heads, strict=True):
        if width % heads:
            raise ConfigError(
                f"PCT-Net's attention cannot share {width} channels among {heads} heads evenly."
            )


def _check_patch_size(patch_size: Shape, divisor: Shape, anisotropy: int) -> None:
    nearest = tuple(max(d, round(n / d) * d) for n, d in zip(patch_size, divisor, strict=True))
    if nearest != patch_size:
        raise ConfigError(
            f"PCT-Net with anisotropy {anisotropy} takes patches whose sides are multiples of {divisor}, "
            f"got {patch_size}; the nearest size that works is {nearest}."
        )
