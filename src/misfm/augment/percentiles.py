"""Exact percentiles of large tensors: on a CPU without sorting, elsewhere without waiting for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pair = tuple[float, float]
Values = NDArray[np.floating[Any]]

ON_CPU = (torch.float32, torch.float64)
"""Types of values on a CPU that are not sorted."""


def spread(x: Tensor, percents: Pair) -> Tensor:
    """Return minimum, two percentiles and maximum of all values, (4,).

    On a CPU they are found with numpy and returned in double precision. Elsewhere all values are sorted,
    which is what a GPU is good at: nothing is read back to decide what to do next.

    Args:
        x: any shape, not empty, finite.
        percents: two numbers in 0..100, ascending.
    """
    if x.device.type == "cpu" and x.dtype in ON_CPU:
        tails = Tails.around(x.detach().flatten().numpy(), percents)
        low, high = tails.percentiles(percents)
        return torch.tensor([tails.at(0), low, high, tails.at(x.numel() - 1)], dtype=torch.float64)
    ordered = x.flatten().sort().values
    last = ordered.numel() - 1
    positions = [last * (percent / 100) for percent in (0, *percents, 100)]
    ranks = [(rank := int(position), min(rank + 1, last), position - rank) for position in positions]
    return torch.stack([torch.lerp(ordered[at], ordered[next_], weight) for at, next_, weight in ranks])


def percentile_pair(x: Tensor, percents: Pair, stride: int = 61) -> Pair:
    """Return two percentiles of all values of a CPU tensor, to the last bit those of numpy on doubles.

    Args:
        x: any shape, not empty, finite.
        percents: two numbers in 0..100, ascending; fastest near the ends.
        stride: distance of the values that tell where to look.
    """
    return Tails.around(x.flatten().numpy(), percents, stride).percentiles(percents)


@dataclass(frozen=True)
class Tails:
    """All values of an array, and apart those below one cut and those above another."""

    values: Values
    below: Values
    above: Values
    low_cut: float
    high_cut: float

    @classmethod
    def around(cls, values: Values, percents: Pair, stride: int = 61) -> Tails:
        """Cut off, a little generously, the tails in which two percentiles of 1-D ``values`` lie.

        A sample of every ``stride``-th value tells where to cut; only the few values beyond the cuts are
        searched. What is found is exact however badly the sample stands for the whole: a rank that lies
        between the cuts is looked for in all values.
        """
        sample = values[::stride]
        last = sample.size - 1
        positions = [(values.size - 1) * (percent / 100) for percent in percents]
        # Three standard deviations of the rank that a value of the tail has in a random sample.
        margins = [4 + 3 * math.sqrt(min(p, values.size - p) / stride) for p in positions]
        low_rank = min(int(positions[0] / stride + margins[0]), last)
        high_rank = min(max(int(positions[1] / stride - margins[1]), low_rank), last)
        ordered = np.partition(sample, (low_rank, high_rank))
        return cls.cut(values, float(ordered[low_rank]), float(ordered[high_rank]))

    @classmethod
    def cut(cls, values: Values, low_cut: float, high_cut: float) -> Tails:
        """Cut the tails off 1-D ``values``."""
        return cls(values, values[values < low_cut], values[values > high_cut], low_cut, high_cut)

    def percentiles(self, percents: Pair) -> Pair:
        """Two percentiles, wherever they lie."""
        low, high = (self.interpolate((self.values.size - 1) * (percent / 100)) for percent in percents)
        return low, high

    def interpolate(self, position: float) -> float:
        """Value at a fractional rank, rounded like numpy's."""
        rank = int(position)
        weight = position - rank
        if weight == 0:
            return self.at(rank)
        at, following = self.at(rank), self.at(rank + 1)
        gap = following - at
        return at + gap * weight if weight < 0.5 else following - gap * (1 - weight)

    def at(self, rank: int) -> float:
        """Value number ``rank`` in ascending order."""
        first_above = self.values.size - self.above.size
        if rank < self.below.size:
            return kth_value(self.below, rank)
        if rank >= first_above:
            return kth_value(self.above, rank - first_above)
        # Many values are often equal to a cut: air, or what was clipped.
        if 2 * rank < self.values.size and rank < self.below.size + self.low_ties:
            return self.low_cut
        if 2 * rank >= self.values.size and rank >= first_above - self.high_ties:
            return self.high_cut
        return kth_value(self.values, rank)

    @cached_property
    def low_ties(self) -> int:
        """How many values equal the lower cut."""
        return int(np.count_nonzero(self.values == self.low_cut))

    @cached_property
    def high_ties(self) -> int:
        """How many values equal the upper cut."""
        return int(np.count_nonzero(self.values == self.high_cut))


def kth_value(values: Values, rank: int) -> float:
    """Value number ``rank`` in ascending order, the smallest being number 0."""
    return float(np.partition(values, rank)[rank])
