"""Mirrors: which axes may be mirrored, drawing them, and doing it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from typing import Literal

import torch
from torch import Generator, Tensor

AxisName = Literal["D", "H", "W"]


_SIDES = "left|right|links|rechts|sinist|dexter|gauche|droit|izquierd|derech"


_SHORT_SIDES = "lh|rh|lt|rt|l|r|sin|dex|sx|dx"


_LATERAL = re.compile(
    rf"(?i:{_SIDES})|(?<![A-Za-z])(?i:{_SHORT_SIDES})(?![A-Za-z])"
    r"|[a-z](?:[LR]|Lt|Rt|LT|RT)$|^(?:[LR]|Lt|Rt)(?=[A-Z][a-z])"
)
"""A word for a side, or a short one that stands alone: lh_hippocampus, ParotidL, LtParotid."""


def safe_flip_axes(label_names: Iterable[str]) -> tuple[AxisName, ...]:
    """Return the axes that may be mirrored: the left-right axis W, unless a label tells left from right.

    A label does so that names a side, or two that differ in one letter, L and R (PAROTIDL, PAROTIDR): where
    in doubt, nothing is mirrored.
    """
    names = list(label_names)
    sided = any(_LATERAL.search(name) for name in names)
    return () if sided or any(_differ_in_side(*pair) for pair in combinations(names, 2)) else ("W",)


def side_of(name: str) -> tuple[str, Literal["left", "right"]] | None:
    """Return what a name says beside the side, in lower case, and the side; None where it tells none."""
    found = _LATERAL.search(name)
    if found is None:
        return None
    word = re.sub(r"^[a-z](?=[LR])", "", found[0])  # of "KidneyL", the L alone
    rest = name[: found.end() - len(word)] + name[found.end() :]
    is_left = word.lower().startswith(("l", "sin", "sx", "gauche", "izq"))
    return rest.lower(), "left" if is_left else "right"


def _differ_in_side(one: str, other: str) -> bool:
    if len(one) != len(other):
        return False
    differing = [{a, b} for a, b in zip(one.lower(), other.lower(), strict=True) if a != b]
    return differing == [{"l", "r"}]


def sample_flips(probability: float, generator: Generator) -> tuple[int, ...]:
    """Draw which of the axes -3, -2, -1 to mirror."""
    draws = torch.rand(3, generator=generator, device=generator.device).tolist()
    return tuple(axis for axis, draw in zip((-3, -2, -1), draws, strict=True) if draw < probability)


def flip(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mirror (…, D, H, W) along ``axes``."""
    return x.flip(axes) if axes else x
