"""Mirrors: which axes may be mirrored, drawing them, and doing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Generator, Tensor

from misfm.augment.sides import tell_sides

AxisName = Literal["D", "H", "W"]


def safe_flip_axes(label_names: Iterable[str]) -> tuple[AxisName, ...]:
    """Return the axes that may be mirrored: the left-right axis W, unless a label tells left from right.

    A label does so that names a side, or two that differ in nothing but words or letters for the two
    (:mod:`misfm.augment.sides`).
    """
    return () if tell_sides(label_names) else ("W",)


def sample_flips(probability: float, generator: Generator) -> tuple[int, ...]:
    """Draw which of the axes -3, -2, -1 to mirror."""
    draws = torch.rand(3, generator=generator, device=generator.device).tolist()
    return tuple(axis for axis, draw in zip((-3, -2, -1), draws, strict=True) if draw < probability)


def flip(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mirror (…, D, H, W) along ``axes``."""
    return x.flip(axes) if axes else x
