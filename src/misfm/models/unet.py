"""A lean residual U-Net: the default where compute is small.

The design spends as little as possible at full resolution, where a convolution costs most: one convolution
in the encoder and one in the decoder (a light decoder, as in nnU-Net's ResEnc), and skips that are added
instead of concatenated (as in SegResNet, arXiv 1810.11654), which halves the width of decoder convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from operator import index
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.base import NETWORKS, Backbone, Demand, differences, total_strides
from misfm.models.heads import SegmentationHead
from misfm.volume import Shape

NEGATIVE_SLOPE = 0.01


class ResidualBlock(nn.Module):
    """x + convolutions of x, pre-activated, (B, C, D, H, W) -> the same shape."""

    def __init__(self, channels: int, num_convs: int) -> None:
        super().__init__()
        convs = (preactivated_conv(channels, channels) for _ in range(num_convs))
        self.layers = nn.Sequential(*chain.from_iterable(convs))

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input."""
        return x + cast(Tensor, self.layers(x))


def preactivated_conv(in_channels: int, out_channels: int, stride: Shape = (1, 1, 1)) -> list[nn.Module]:
    """Norm, activation, 3x3x3 convolution."""
    return [
        nn.InstanceNorm3d(in_channels, affine=True),
        nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
    ]


class UNetEncoder(nn.Module):
    """Patch (B, C, D, H, W) -> one feature a level, high to low resolution."""

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[Shape]) -> None:
        super().__init__()
        self.stem = nn.Conv3d(in_channels, channels[0], kernel_size=3, padding=1)
        self.levels = nn.ModuleList(
            nn.Sequential(*preactivated_conv(fine, coarse, stride), ResidualBlock(coarse, num_convs=2))
            for fine, coarse, stride in zip(channels, channels[1:], strides, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """All features; the last is the bottleneck."""
        features = [cast(Tensor, self.stem(x))]
        for level in self.levels:
            features.append(level(features[-1]))
        return features


class UNetDecoder(nn.Module):
    """Encoder features -> one feature a level, finest first, the bottleneck left out."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.squeezes = nn.ModuleList(nn.Conv3d(coarse, fine, kernel_size=1) for fine, coarse in pairs)
        self.blocks = nn.ModuleList(ResidualBlock(fine, num_convs=1) for fine, _ in pairs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each level, finest first."""
        x = features[-1]
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.squeezes))):
            skip = features[level]
            up = F.interpolate(self.squeezes[level](x), size=skip.shape[2:], mode="nearest")
            x = self.blocks[level](skip + up)
            outputs.append(x)
        return outputs[::-1]


class UNet(Backbone):
    """See :func:`build_unet`."""

    def __init__(self, in_channels: int, channels: Sequence[int], strides: Sequence[Shape]) -> None:
        super().__init__()
        self.encoder = UNetEncoder(in_channels, channels, strides)
        self.decoder = UNetDecoder(channels)
        self.in_channels = in_channels
        self.encoder_channels, self.encoder_strides = tuple(channels), total_strides(strides)
        self.channels, self.strides = self.encoder_channels[:-1], self.encoder_strides[:-1]
        self.min_divisor = self.encoder_strides[-1]

    def adopt(self, recorded: Mapping[str, Any] | None, *, source: str = "The weights") -> list[str]:
        """Tell where the weights learnt with other strides, which their shapes do not show."""
        return differences(recorded, {"strides": [list(step) for step in self.options["strides"]]})

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """Norm, activation and a 1x1x1 convolution a level: features leave the decoder before activation."""
        return SegmentationHead(
            [
                nn.Sequential(
                    nn.InstanceNorm3d(channels, affine=True),
                    nn.LeakyReLU(NEGATIVE_SLOPE),
                    nn.Conv3d(channels, num_classes, kernel_size=1),
                )
                for channels in self.channels[:num_outputs]
            ]
        )


@NETWORKS.register("unet", demand=Demand(694, multiple=8, width=16, recomputed=462))
def build_unet(
    in_channels: int,
    patch_size: Shape,
    *,
    channels: Sequence[int] = (16, 32, 64, 128, 128),
    strides: Sequence[Sequence[int]] | None = None,
) -> UNet:
    """Build the lean residual U-Net.

    Args:
        in_channels: channels of the image.
        patch_size: voxels along (D, H, W).
        channels: features of each level, fine to coarse.
        strides: step along (D, H, W) from each level to the next; by default an axis is halved while 4
            voxels or more stay. The shapes of the weights do not depend on them, what they have learnt does:
            weights bring their strides along.

    Raises:
        ConfigError: fewer than two levels, another number of strides, or a patch of which a single voxel is
            left at the coarsest level.
    """
    if len(channels) < 2 or min(channels) < 1:
        raise ConfigError(f"A U-Net needs at least two levels of one or more channels, got {list(channels)}.")
    channels = [index(width) for width in channels]
    steps = level_strides(patch_size, len(channels) - 1) if strides is None else strides
    if len(steps) != len(channels) - 1 or any(len(step) != 3 or min(step) < 1 for step in steps):
        raise ConfigError(f"A U-Net of {len(channels)} levels needs one stride D,H,W from each to the next.")
    unet = UNet(in_channels, channels, [(index(d), index(h), index(w)) for d, h, w in steps])
    if all(side <= divisor for side, divisor in zip(patch_size, unet.min_divisor, strict=True)):
        raise ConfigError(
            f"A patch of {patch_size} leaves one voxel at the coarsest level: take more than "
            f"{unet.min_divisor} along an axis, or fewer levels."
        )
    unet.options = {"channels": channels, "strides": steps}
    return unet


def level_strides(patch_size: Shape, num_steps: int, smallest: int = 4) -> list[Shape]:
    """Stride of each step down: 2 along an axis while that leaves ``smallest`` voxels of it, else 1."""
    strides: list[Shape] = []
    sides = list(patch_size)
    for _ in range(num_steps):
        stride = [2 if side >= 2 * smallest else 1 for side in sides]
        sides = [-(-side // s) for side, s in zip(sides, stride, strict=True)]
        strides.append((stride[0], stride[1], stride[2]))
    return strides
