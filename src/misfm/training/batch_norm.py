"""Batch statistics of the whole batch where each rank has a share of it.

``torch.nn.SyncBatchNorm`` does this on GPUs only; here CPUs do the same, so that what is tested is what runs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from misfm import world


def share_batch_norms(model: nn.Module) -> None:
    """Let the batch norms of a model see the samples of all ranks, in place; names of tensors stay.

    In a world, every rank then has to call the model for each batch while it trains. All have the running
    statistics that one process would have, so that ``DistributedDataParallel`` need not send any.
    """
    for module in model.modules():
        if type(module) in SHARED:
            module.__class__ = SHARED[type(module)]


class _Shared(_BatchNorm):
    """Batch norm that takes its statistics from all ranks while training, and is PyTorch's own elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if not self.training or world.size() == 1:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, var * count / (count - 1))
        return cast(Tensor, y)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Take mean and unbiased variance of a batch into the running ones."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(var.to(self.running_var), share)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """See :func:`share_batch_norms`."""


class SharedBatchNorm2d(_Shared, nn.BatchNorm2d):
    """See :func:`share_batch_norms`."""


class SharedBatchNorm3d(_Shared, nn.BatchNorm3d):
    """See :func:`share_batch_norms`."""


SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    nn.BatchNorm3d: SharedBatchNorm3d,
}


class _Normalise(torch.autograd.Function):
    """(B, C, ...) normalised by mean and variance of all ranks; statistics in float32 or better.

    Gradients follow :func:`misfm.world.total`: those of a loss that all ranks compute are summed over them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(exact, axes, correction=0)
        # Deviations from each rank's own mean are summed, for differences of large sums lose their digits.
        rows = mean.new_zeros(world.size(), 3, len(mean))
        count = x.numel() // len(mean)
        rows[world.rank()] = torch.stack([mean.new_full(mean.shape, count), mean, var])
        counts, means, variances = world.total(rows).unbind(1)
        shares = counts / (total := counts.sum(0))
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean) ** 2)).sum(0)
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        centred = (x - mean.view(shape)) * inverse.view(shape)
        exact = gradient.to(centred.dtype)
        own = torch.stack([exact.sum(axes), (exact * centred).sum(axes)])
        of_all = world.total(own) / total
        towards_x = exact - of_all[0].view(shape) - centred.mul_(of_all[1].view(shape))
        towards_x *= (inverse if weight is None else inverse * weight).view(shape)
        towards_weight, towards_bias = (None, None) if weight is None else (own[1], own[0])
        return towards_x.to(x.dtype), towards_weight, towards_bias, None
