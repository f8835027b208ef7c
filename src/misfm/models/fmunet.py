"""FMUNet: the residual U-Net that Volume Fusion v2 was published with (VolF, TIP 2025).

Five levels. Every convolution follows instance norm and leaky ReLU; within a level each adds to its input.
Strided convolutions lead down; a 1x1x1 convolution and trilinear interpolation lead up. Depth may keep its
resolution in level 0 or in levels 0 and 1 (``anisotropy`` 1 and 2), whose kernels are then in-plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.anisotropy import ISOTROPIC, conv, steps_of
from misfm.models.base import NETWORKS, Backbone, Demand, total_strides
from misfm.models.cpu import Dropout
from misfm.models.heads import SegmentationHead
from misfm.volume import Shape

FIRST_DROPOUT_LEVEL = 2


def preactivated(channels: int, *layers: nn.Module) -> nn.Sequential:
    """Instance norm, leaky ReLU, then ``layers``."""
    return nn.Sequential(nn.InstanceNorm3d(channels, affine=True), nn.LeakyReLU(inplace=True), *layers)


class ResidualLevel(nn.Module):
    """``depth`` convolutions, each added to its input, (B, C, D, H, W) -> the same shape."""

    def __init__(self, channels: int, step: Shape, depth: int, dropout: float) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            preactivated(channels, Dropout(dropout), conv(channels, channels, step)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """All units in turn."""
        for unit in self.units:
            x = x + cast(Tensor, unit(x))
        return x


def residual_levels(
    channels: Sequence[int], steps: Sequence[Shape], depth: int, dropout: float
) -> nn.ModuleList:
    """Levels 0 to 4; the coarsest is left by no step and is convolved in 3D."""
    return nn.ModuleList(
        ResidualLevel(width, step, depth, dropout if level >= FIRST_DROPOUT_LEVEL else 0.0)
        for level, (width, step) in enumerate(zip(channels, (*steps, ISOTROPIC), strict=True))
    )


class FMEncoder(nn.Module):
    """Patch (B, C, D, H, W) -> features of levels 0 to 4."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], steps: Sequence[Shape], depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.project = conv(in_channels, channels[0], steps[0])
        self.levels = residual_levels(channels, steps, depth, dropout)
        self.downs = nn.ModuleList(
            preactivated(fine, conv(fine, coarse, step, strided=True))
            for (fine, coarse), step in zip(pairwise(channels), steps, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """All features, high to low resolution."""
        features = [cast(Tensor, self.levels[0](self.project(x)))]
        for down, level in zip(self.downs, self.levels[1:], strict=True):
            features.append(level(down(features[-1])))
        return features


class FMDecoder(nn.Module):
    """Features of levels 0 to 4 -> features of levels 0 to 3."""

    def __init__(self, channels: Sequence[int], steps: Sequence[Shape], depth: int, dropout: float) -> None:
        super().__init__()
        self.levels = residual_levels(channels, steps, depth, dropout)
        self.narrows = nn.ModuleList(
            preactivated(coarse, nn.Conv3d(coarse, fine, kernel_size=1))
            for fine, coarse in pairwise(channels)
        )
        self.merges = nn.ModuleList(
            preactivated(2 * width, conv(2 * width, width, step))
            for width, step in zip(channels, steps, strict=False)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each level, finest first."""
        x = cast(Tensor, self.levels[-1](features[-1]))
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.merges))):
            skip = features[level]
            up = F.interpolate(
                self.narrows[level](x), size=skip.shape[2:], mode="trilinear", align_corners=True
            )
            x = self.levels[level](self.merges[level](torch.cat([skip, up], dim=1)))
            outputs.append(x)
        return outputs[::-1]


class FMUNet(Backbone):
    """See :func:`build_fmunet`."""

    def __init__(
        self, in_channels: int, channels: Sequence[int], steps: tuple[Shape, ...], depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = FMEncoder(in_channels, channels, steps, depth, dropout)
        self.decoder = FMDecoder(channels, steps, depth, dropout)
        self.in_channels, self.stem_weight = in_channels, "encoder.project.weight"
        self.encoder_channels, self.encoder_strides = tuple(channels), total_strides(steps)
        self.channels, self.strides = self.encoder_channels[:-1], self.encoder_strides[:-1]
        self.min_divisor = self.encoder_strides[-1]
        self.steps = steps

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """Norm, activation and a convolution with the kernel of the level, for each level."""
        return SegmentationHead(
            [
                preactivated(width, conv(width, num_classes, step))
                for width, step in zip(self.channels[:num_outputs], self.steps, strict=False)
            ]
        )


@NETWORKS.register("fmunet", demand=Demand(2834, multiple=16, recomputed=1548))
def build_fmunet(
    in_channels: int,
    patch_size: Shape,
    *,
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    depth: int = 2,
    anisotropy: int = 0,
    dropout: float = 0.2,
) -> FMUNet:
    """Build an FMUNet; the defaults are the published configuration.

    Args:
        in_channels: channels of the image.
        patch_size: voxels along (D, H, W). Published: (64, 128, 128).
        channels: features of levels 0 to 4.
        depth: residual convolutions of each level, in the encoder and in the decoder.
        anisotropy: how many of the finest levels keep the depth: 0, 1 or 2.
        dropout: probability, in [0, 1), in levels 2 to 4.

    Raises:
        ConfigError: options out of range, or a patch of which a single voxel is left at the coarsest level.
    """
    if len(channels) != 5 or min(*channels, depth) < 1:
        raise ConfigError(
            "FMUNet takes five channels and a depth, all of at least 1, "
            f"got {tuple(channels)} and a depth of {depth}."
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"Dropout is a probability of at least 0 and below 1, got {dropout}.")
    network = FMUNet(in_channels, channels, steps_of("FMUNet", anisotropy), depth, dropout)
    if all(side <= divisor for side, divisor in zip(patch_size, network.min_divisor, strict=True)):
        raise ConfigError(
            f"A patch of {patch_size} leaves one voxel at FMUNet's coarsest level, which has nothing to "
            f"normalise: take more than {network.min_divisor} voxels along an axis."
        )
    return network
