"""Exact percentiles of large tensors without sorting them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Pair = tuple[float, float]


def percentile_pair(x: Tensor, percents: Pair, stride: int = 61) -> Pair:
    """Return two percentiles of all values, to the last bit those of ``numpy.percentile`` on doubles.

    A sample of every ``stride``-th value tells where to cut off, a little generously, the two tails in which
    the wanted ranks lie; only the few values beyond the cuts are searched. The answer is exact however badly
    the sample stands for the whole: a rank that lies between the cuts is looked for in all values.

    Args:
        x: any shape, not empty, finite.
        percents: two numbers in 0..100, ascending; fastest near the ends.
        stride: distance of the sampled values.
    """
    values = x.flatten()
    positions = [(values.numel() - 1) * (percent / 100) for percent in percents]
    sample = values[::stride].contiguous()
    last = sample.numel() - 1
    # Three standard deviations of the rank that a value of the tail has in a random sample.
    margins = [4 + 3 * math.sqrt(min(p, values.numel() - p) / stride) for p in positions]
    low_rank = min(int(positions[0] / stride + margins[0]), last)
    high_rank = min(max(int(positions[1] / stride - margins[1]), low_rank), last)
    tails = Tails.cut(values, kth_value(sample, low_rank), kth_value(sample, high_rank))
    return tails.interpolate(positions[0]), tails.interpolate(positions[1])


def kth_value(values: Tensor, rank: int) -> float:
    """Value number ``rank`` in ascending order, the smallest being number 0."""
    return float(values.kthvalue(rank + 1).values)


@dataclass(frozen=True)
class Tails:
    """All values of a tensor, and apart those below one cut and those above another."""

    values: Tensor
    below: Tensor
    above: Tensor
    low_cut: float
    high_cut: float

    @classmethod
    def cut(cls, values: Tensor, low_cut: float, high_cut: float) -> Tails:
        """Cut the tails off 1-D ``values``."""
        # Not zero where a cut changed the value; several times as fast on a CPU as comparing twice.
        outside = values.clamp(low_cut, high_cut).sub_(values).bool()
        # Picking whole groups of eight, whose eight flags are read as one integer, is four times as fast.
        grouped = values.numel() // 8 * 8
        touched = outside[:grouped].view(torch.int64).bool()
        candidates = torch.cat([values[:grouped].view(-1, 8)[touched].flatten(), values[grouped:]])
        below, above = candidates[candidates < low_cut], candidates[candidates > high_cut]
        return cls(values, below, above, low_cut, high_cut)

    def interpolate(self, position: float) -> float:
        """Value at a fractional rank, rounded like numpy's."""
        rank = int(position)
        weight = position - rank
        at = self.at(rank)
        if weight == 0:
            return at
        following = self.at(rank + 1)
        gap = following - at
        return at + gap * weight if weight < 0.5 else following - gap * (1 - weight)

    def at(self, rank: int) -> float:
        """Value number ``rank`` in ascending order."""
        first_above = self.values.numel() - self.above.numel()
        if rank < self.below.numel():
            return kth_value(self.below, rank)
        if rank >= first_above:
            return kth_value(self.above, rank - first_above)
        # Many values are often equal to a cut: air, or what was clipped.
        if 2 * rank < self.values.numel() and rank < self.below.numel() + self.low_ties:
            return self.low_cut
        if 2 * rank >= self.values.numel() and rank >= first_above - self.high_ties:
            return self.high_cut
        return kth_value(self.values, rank)

    @cached_property
    def low_ties(self) -> int:
        """How many values equal the lower cut."""
        return count_equal(self.values, self.low_cut)

    @cached_property
    def high_ties(self) -> int:
        """How many values equal the upper cut."""
        return count_equal(self.values, self.high_cut)


def count_equal(values: Tensor, number: float) -> int:
    """How many values equal ``number``."""
    return values.numel() - int((values - number).bool().count_nonzero())
