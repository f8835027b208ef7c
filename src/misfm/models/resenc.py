"""ResEnc: nnU-Net's U-Net with residual blocks in the encoder and plain convolutions in the decoder.

The ``ResidualEncoderUNet`` of nnU-Net (arXiv 2404.09556), whose preset L is the convolutional network of the
OpenMind benchmark (arXiv 2412.17041). Every convolution is followed by instance norm and leaky ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from operator import index
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.base import NETWORKS, Backbone, Demand, total_strides
from misfm.models.heads import SegmentationHead
from misfm.models.unet import NEGATIVE_SLOPE, level_strides
from misfm.volume import Shape

UNIT: Shape = (1, 1, 1)
BRANCH_GAIN = 1e-3
"""Initial weight of the norm that ends a residual branch. nnU-Net has 0, so that blocks start as their
shortcut; this is as good as 0 and lets gradients into the branch from the first step."""

PRESET_L: dict[str, Any] = {
    "channels": (32, 64, 128, 256, 320, 320),
    "blocks": (1, 3, 4, 6, 6, 6),
    "strides": ((2, 2, 2),) * 5,
    "kernel_sizes": ((3, 3, 3),) * 6,
    "convs_per_level": 1,
}
"""The published network: the same steps for any patch."""
DEMAND = Demand(2096, multiple=32, recomputed=1435)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm with weight and bias, which answers a single voxel with the bias instead of raising.

    A patch as wide as the network's total stride leaves one voxel at the coarsest level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return torch.instance_norm(
            x, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )


class ConvNorm(nn.Module):
    """Convolution that keeps or strides over the voxels, then instance norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Shape, stride: Shape = UNIT, *, bias: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        self.norm = InstanceNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D', H', W')."""
        return cast(Tensor, self.norm(self.conv(x)))


class ConvNormAct(ConvNorm):
    """:class:`ConvNorm`, then leaky ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D, H, W)."""
        return F.leaky_relu_(super().forward(x), NEGATIVE_SLOPE)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut: mean over each stride, and a 1x1x1 convolution to other widths."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Shape, stride: Shape = UNIT) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel)
        self.pool = nn.AvgPool3d(stride) if stride != UNIT else nn.Identity()
        self.shortcut = (
            ConvNorm(in_channels, out_channels, UNIT, bias=False)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) -> (B, out, D / stride, ...)."""
        branch = self.conv2(self.conv1(x))
        return F.leaky_relu_(branch + self.shortcut(self.pool(x)), NEGATIVE_SLOPE)


class ResEncEncoder(nn.Module):
    """Patch (B, C, D, H, W) -> one feature a level, high to low resolution."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[Shape],
        kernels: Sequence[Shape],
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, channels[0], kernels[0])
        self.levels = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(fine, coarse, kernel, stride),
                *(ResidualBlock(coarse, coarse, kernel) for _ in range(count - 1)),
            )
            for (fine, coarse), count, stride, kernel in zip(
                pairwise([channels[0], *channels]), blocks, [UNIT, *strides], kernels, strict=True
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """All features; the last is the bottleneck."""
        x = self.stem(x)
        return [x := level(x) for level in self.levels]


class ResEncDecoder(nn.Module):
    """Encoder features -> one feature a level, finest first, the bottleneck left out."""

    def __init__(
        self, channels: Sequence[int], strides: Sequence[Shape], kernels: Sequence[Shape], num_convs: int
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, stride, stride)
            for (fine, coarse), stride in zip(pairs, strides, strict=True)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(
                ConvNormAct(2 * fine, fine, kernel),
                *(ConvNormAct(fine, fine, kernel) for _ in range(num_convs - 1)),
            )
            for (fine, _), kernel in zip(pairs, kernels, strict=False)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each level, finest first."""
        x = features[-1]
        outputs: list[Tensor] = []
        for level in reversed(range(len(self.ups))):
            x = self.levels[level](torch.cat([self.ups[level](x), features[level]], dim=1))
            outputs.append(x)
        return outputs[::-1]


class ResEnc(Backbone):
    """See :func:`build_resenc`."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[Shape],
        kernels: Sequence[Shape],
        num_convs: int,
    ) -> None:
        super().__init__()
        self.encoder = ResEncEncoder(in_channels, channels, blocks, strides, kernels)
        self.decoder = ResEncDecoder(channels, strides, kernels, num_convs)
        self.in_channels, self.stem_weight = in_channels, "encoder.stem.conv.weight"
        self.encoder_channels, self.encoder_strides = tuple(channels), total_strides(strides)
        self.channels, self.strides = self.encoder_channels[:-1], self.encoder_strides[:-1]
        self.min_divisor = self.encoder_strides[-1]
        self.apply(initialise)

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """A 1x1x1 convolution a level, initialised like the backbone."""
        return super().build_head(num_classes, num_outputs=num_outputs).apply(initialise)


def initialise(module: nn.Module) -> None:
    """He initialisation as nnU-Net has it; residual blocks start as their shortcut."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):  # its children come before it
        nn.init.constant_(module.conv2.norm.weight, BRANCH_GAIN)


@NETWORKS.register("resenc", demand=DEMAND)
def build_resenc(
    in_channels: int,
    patch_size: Shape,
    *,
    channels: Sequence[int] = PRESET_L["channels"],
    blocks: Sequence[int] = PRESET_L["blocks"],
    strides: Sequence[Sequence[int]] | None = None,
    kernel_sizes: Sequence[Sequence[int]] | None = None,
    convs_per_level: int = 1,
) -> ResEnc:
    """Build a ResEnc U-Net; widths and depths are by default those of preset L.

    Args:
        in_channels: channels of the image.
        patch_size: voxels along (D, H, W); any size works, padded to a multiple of the total stride.
        channels: features of each level, fine to coarse.
        blocks: residual blocks of each level of the encoder.
        strides: step along (D, H, W) from each level to the next; by default 2, as in all published weights,
            for as long as an axis has two voxels.
        kernel_sizes: voxels (D, H, W) of the kernels of each level, odd; 3 x 3 x 3 by default.
        convs_per_level: convolutions of each level of the decoder.

    Raises:
        ConfigError: options that do not fit together.
    """
    channels, blocks = [index(width) for width in channels], [index(count) for count in blocks]
    num_levels = len(channels)
    if num_levels < 2 or len(blocks) != num_levels or min(*channels, *blocks, index(convs_per_level)) < 1:
        raise ConfigError(
            "A ResEnc needs at least two levels, each with one or more channels and blocks, and one or more "
            f"convolutions in the decoder; got channels {channels}, blocks {blocks} and {convs_per_level}."
        )
    steps = _triples(level_strides(patch_size, num_levels - 1, smallest=1) if strides is None else strides)
    kernels = _triples([(3, 3, 3)] * num_levels if kernel_sizes is None else kernel_sizes)
    if len(steps) != num_levels - 1 or min(map(min, steps)) < 1:
        raise ConfigError(f"A ResEnc of {num_levels} levels needs one stride D,H,W from each to the next.")
    if len(kernels) != num_levels or any(side < 1 or side % 2 == 0 for kernel in kernels for side in kernel):
        raise ConfigError(f"A ResEnc of {num_levels} levels needs one odd kernel size D,H,W for each.")
    network = ResEnc(in_channels, channels, blocks, steps, kernels, convs_per_level)
    network.options = {"strides": steps, "kernel_sizes": kernels}
    return network


NETWORKS.register("resenc-l", demand=DEMAND)(partial(build_resenc, **PRESET_L))


def _triples(values: Sequence[Sequence[int]]) -> list[Shape]:
    return [(index(d), index(h), index(w)) for d, h, w in values]
