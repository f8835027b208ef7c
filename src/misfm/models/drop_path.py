"""Stochastic depth (arXiv 1603.09382): now and then a sample skips a residual branch in training."""

from __future__ import annotations

from torch import Tensor


def drop_path(branch: Tensor, probability: float, *, training: bool) -> Tensor:
    """Set a branch (B, N, C) to 0 for samples drawn with a probability in [0, 1), keeping its mean.

    Nothing is drawn, and the branch returned as it is, unless ``training`` with a probability above 0.
    """
    if not training or not probability:
        return branch
    kept = 1 - probability
    return branch * (branch.new_empty(len(branch), 1, 1).bernoulli_(kept) / kept)
