"""Several networks that label as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.models.heads import finest


class Ensemble(nn.Module):
    """Networks of the same input and outputs: patch (B, C, D, H, W) to logits (B, K, D, H, W), float32.

    Their probabilities are averaged voxel by voxel, and given as logits: softmax of the result, or sigmoid
    for regions, is that mean, and windows are blended as those of one network are, in the memory of one.

    Args:
        networks: at least one; of what they return as a list the first is taken.
        regions: outputs are regions that may overlap, each with a probability of its own.
    """

    def __init__(self, networks: Sequence[nn.Module], *, regions: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.regions = regions

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the mean probability of each class; for a region, of that over its absence's."""
        first, *others = self.networks
        total: Tensor = self._log_probabilities(first(x))
        for network in others:
            total = torch.logaddexp(total, self._log_probabilities(network(x)))
        if self.regions:
            return total[0] - total[1]
        return total - math.log(len(self.networks))

    def _log_probabilities(self, outputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Of each class (B, K, …); of each region and of its absence (2, B, R, …)."""
        logits = finest(outputs).float()
        if self.regions:
            return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)])
        return logits.log_softmax(dim=1)
