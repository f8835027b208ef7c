"""Heads: what turns a backbone's features into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn


def finest(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The finest level of what a network returns: logits, or with deep supervision the first of a list."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


class SegmentationHead(nn.Module):
    """One small module for each level that is to be predicted.

    Args:
        levels: modules (B, C_i, D_i, H_i, W_i) -> (B, K, D_i, H_i, W_i), finest first.
    """

    def __init__(self, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of the first ``len(levels)`` features, finest first."""
        return [cast(Tensor, level(feature)) for level, feature in zip(self.levels, features, strict=False)]
