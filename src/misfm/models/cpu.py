"""Layers that PyTorch computes slowly on a CPU, done faster there; elsewhere they are PyTorch's own.

On one core (AVX2, float32, 4 million values) a dropout's forward pass takes PyTorch 50 ms, of which 43 go
into drawing the mask, and 17 ms here; forward and backward of a PReLU take 23 ms and 7 ms. With channels
last, max pooling takes a tenth and batch norm half of the time, and most convolutions no more than
before.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RESOLUTION = 1 << 16  # probabilities of a mask are whole numbers of 1 / 65536
CHUNK = 1 << 16  # values drawn at a time, which stay in the cache


def fast_layout(x: Tensor) -> Tensor:
    """(B, C, D, H, W) with channels last in memory on a CPU; the same values."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


def fill_mask(mask: Tensor, dropout: float) -> None:
    """Set each value of ``mask`` (n,) uint8 on the CPU to 0 with probability ``dropout``, else to 1.

    One random 64-bit number serves four values, so that the probability is exact to 1/65536.
    """
    lowest_kept = round(dropout * RESOLUTION) - RESOLUTION // 2
    words = torch.empty(-(-min(len(mask), CHUNK) // 4), dtype=torch.int64, device="cpu")
    for part in torch.split(mask, CHUNK):
        words.random_(-(1 << 63), None)
        torch.ge(words.view(torch.int16)[: len(part)], lowest_kept, out=part)


class Dropout(nn.Dropout):
    """Dropout with masks from :func:`fill_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop while training."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return cast(Tensor, _Drop.apply(x, self.p))  # type: ignore[no-untyped-call]


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.uint8)
        fill_mask(mask.as_strided((mask.numel(),), (1,)), dropout)  # in the order of memory
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - dropout)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None


class PointwiseConv(nn.Conv3d):
    """1x1x1 convolution; with channels last it is a matrix product over the voxels as they lie."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, K, D, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)
        voxels = F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return voxels.permute(0, 4, 1, 2, 3)


class InPlaneConv(nn.Conv3d):
    """Convolution with a kernel of depth 1; with channels last the slices are a batch of images as they lie.

    From 48 to 24 channels its weights' gradient took 64 ms instead of 181. Images of one channel,
    whose layout is ambiguous, are left to PyTorch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, K, D, H', W')."""
        channels_last = self.in_channels > 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
        if x.device.type != "cpu" or not channels_last:
            return super().forward(x)
        slices = x.transpose(1, 2).flatten(0, 1)
        stride, padding = self.stride[1:], self.padding[1:]
        convolved = F.conv2d(slices, self.weight.squeeze(2), self.bias, stride, padding)
        return convolved.view(len(x), -1, *convolved.shape[1:]).transpose(1, 2)


class StepUp(nn.ConvTranspose3d):
    """Transposed convolution whose kernel is its stride: a matrix product that makes a block of each voxel.

    Forward and backward of PyTorch's took 2.5 times as long in the finest level of PCT-Net.
    """

    def __init__(self, in_channels: int, out_channels: int, step: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=step, stride=step)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, D, H, W) -> (B, K, step * (D, H, W))."""
        if not self.training or x.device.type != "cpu" or self.bias is None:
            return super().forward(x, output_size)
        kernel = self.weight.permute(2, 3, 4, 1, 0)
        blocks = F.linear(
            x.permute(0, 2, 3, 4, 1), kernel.flatten(0, 3), self.bias.repeat(kernel[..., 0, 0].numel())
        )
        blocks = blocks.view(len(x), *x.shape[2:], *kernel.shape[:4])  # (B, D, H, W, d, h, w, K)
        volume = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return volume.permute(0, 4, 1, 2, 3)


class PReLU(nn.PReLU):
    """PReLU with one slope for all channels; PyTorch writes the slope's gradient out for each value."""

    def forward(self, x: Tensor) -> Tensor:
        """x where positive, else slope * x."""
        if self.training and x.device.type == "cpu":
            return cast(Tensor, _PReLU.apply(x, self.weight))  # type: ignore[no-untyped-call]
        return super().forward(x)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, float(slope))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        towards_x = torch.ops.aten.leaky_relu_backward(gradient, x, float(slope), False)
        towards_slope = x.clamp(max=0).mul_(gradient).sum(dtype=slope.dtype)
        return towards_x, towards_slope.view(1)
