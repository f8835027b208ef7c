"""Several networks that label as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from misfm.models.heads import finest


class Ensemble(nn.Module):
    """Networks of the same input and classes: patch (B, C, D, H, W) to logits (B, K, D, H, W), float32.

    Their class probabilities are averaged voxel by voxel, and given as logarithms: softmax of the result is
    that mean, and windows are blended as those of one network are, in the memory of one.

    Args:
        networks: at least one; of what they return as a list the first is taken.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the mean probability of each class."""
        first, *others = self.networks
        total = finest(first(x)).float().log_softmax(dim=1)
        for network in others:
            total = torch.logaddexp(total, finest(network(x)).float().log_softmax(dim=1))
        return total - math.log(len(self.networks))
