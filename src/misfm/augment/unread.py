"""Contrast and gamma of a view where no number may be read, for that would wait for the device.

The same as in :mod:`misfm.augment.views` up to rounding: what is a branch there is a choice of each voxel
here, and percentiles come from a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLAT = 1e-5
"""Share of the largest magnitude below which two intensities count as the same."""


def unread_contrast(x: Tensor, percentiles: tuple[float, float], gamma: float) -> Tensor:
    """Map [min, p_low, p_high, max] to [0, 0.1, 0.9, 1], then bend by ``gamma``.

    Args:
        x: any shape, on any device.
        percentiles: the two in 0..100 at which p_low and p_high lie.
        gamma: exponent on intensities scaled to [0, 1].
    """
    values = x.flatten().sort().values
    low, high = (_at(values, (len(values) - 1) * (percent / 100)) for percent in percentiles)
    smallest, largest = values[0], values[-1]
    magnitude = torch.maximum(smallest.abs(), largest.abs())
    flat = (FLAT * magnitude).clamp(min=torch.finfo(x.dtype).tiny)
    stretched = _ramp(x, low, torch.maximum(high, low + flat), 0.8)
    below = _ramp(x, smallest, torch.maximum(low, smallest + flat), 0.1)
    stretched += torch.where(low - smallest > flat, below, 0.1)
    above = _ramp(x, high, torch.maximum(largest, high + flat), 0.1)
    stretched += torch.where(largest - high > flat, above, 0.0)
    return _bend(stretched, gamma)


def _at(values: Tensor, position: float) -> Tensor:
    """Value at a fractional rank of sorted ones, a scalar tensor."""
    rank = int(position)
    return torch.lerp(values[rank], values[min(rank + 1, len(values) - 1)], position - rank)


def _ramp(x: Tensor, start: Tensor, stop: Tensor, height: float) -> Tensor:
    """Return 0 where x is up to ``start``, ``height`` from ``stop`` on, and the straight line between."""
    return ((x - start) * (height / (stop - start))).clamp_(0, height)


def _bend(x: Tensor, gamma: float) -> Tensor:
    """Raise x, scaled to [0, 1], to the power ``gamma`` and scale it back."""
    smallest, largest = x.aminmax()
    span = largest - smallest
    scaled = (x - smallest) / span.clamp(min=torch.finfo(x.dtype).tiny)
    return scaled.pow(gamma).mul(span).add(smallest).clamp(smallest, largest)
