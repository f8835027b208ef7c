"""How the voxels of a scan are distributed, whether that is how CT looks, and how scans of training looked.

HU tell CT from everything else: air lies near -1000 and nearly all of a body within 200 of water. That holds
for a CT that was clipped or cut out of soft tissue, too, and neither for MR, whose interpolation undershoots
zero, nor for phase images, which are as often below zero as above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.settings import Settings
from misfm.volume import triple

Range = tuple[float, float]
"""Lowest and highest value."""

_SAMPLES = 200_000
"""Voxels that are looked at."""
_AIR_HU, _BODY_HU, _SOFT_HU, _BRIGHT_HU = -600.0, -500.0, 200.0, 1500.0
"""Air and lung are below the first, the body above the second, most of it within the third of water; only
metal and teeth are above the last."""
_DARK_HU = -20.0
"""Fat, and the noise of water, are below."""
_CLIPPED = 0.002
"""Share of air from which a CT counts as one that shows it."""
_MOSTLY, _PARTLY, _HARDLY = 0.7, 0.4, 0.05
_LEAST_SPREAD = 50.0
"""HU between the darkest and the brightest voxels at least: images scaled to a few units have less."""


class Appearance(Settings):
    """Where the intensities of a scan, or of one of its channels, lie."""

    darkest: float
    """Half a percent of its voxels are below."""
    brightest: float
    """Half a percent of its voxels are above."""
    is_ct: bool
    """Whether it looks like CT in HU."""
    doubt: str = ""
    """What speaks against that, in a clause; empty where nothing does."""


class ChannelRanges(Settings):
    """Where the intensities of a channel lay in a training, from the least of the scans to the most."""

    darkest: Range
    """Of the darkest voxels, see :class:`Appearance`."""
    brightest: Range
    """Likewise of the brightest."""
    is_ct: bool
    """Whether most of the scans looked like CT in HU."""

    def holds(self, seen: Appearance) -> bool:
        """Whether intensities lie among those of the training, or nearly so."""
        margin = 0.25 * (self.brightest[1] - self.darkest[0])
        return seen.darkest >= self.darkest[0] - margin and seen.brightest <= self.brightest[1] + margin


class ScanRanges(Settings):
    """What the scans of a training were like, from the least of them to the most."""

    spacing: tuple[Range, Range, Range]
    """mm per voxel along (D, H, W) in canonical orientation, before they were resampled."""
    extent: tuple[Range, Range, Range]
    """mm of the box around the patient along (D, H, W)."""
    channels: tuple[ChannelRanges, ...]
    """Intensities of each channel."""


def appearance_of(voxels: NDArray[Any]) -> Appearance:
    """Look at the voxels of one channel, of any shape."""
    flat = voxels.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLES)].astype(np.float64)
    darkest, brightest = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    is_ct, doubt = _judge(sample, darkest, brightest)
    return Appearance(darkest=darkest, brightest=brightest, is_ct=is_ct, doubt=doubt)


def _judge(sample: NDArray[np.float64], darkest: float, brightest: float) -> tuple[bool, str]:
    """Whether intensities (N,) are those of CT in HU, and what is odd about that."""
    body = sample[sample > _BODY_HU]
    soft = float((np.abs(body) <= _SOFT_HU).mean()) if body.size else 0.0
    bright, dark = float((sample > _BRIGHT_HU).mean()), float((sample < _DARK_HU).mean())
    numbers = f"from {darkest:.4g} to {brightest:.4g}"
    if (sample < _AIR_HU).mean() >= _CLIPPED:
        if soft >= _PARTLY and bright <= _HARDLY:
            return True, ""
        return False, f"its values reach {numbers} and are spread as those of no CT in HU"
    if soft >= _MOSTLY and bright <= _HARDLY and dark >= 0.02 and brightest - darkest >= _LEAST_SPREAD:
        return True, f"it shows no air, and its values reach {numbers}"
    if darkest < min(_DARK_HU, -0.02 * brightest):
        return False, f"it has values below zero, {numbers}"
    return False, ""


def ranges_of(
    grids: Sequence[tuple[Sequence[float], Sequence[float]]], channels: Sequence[Sequence[Appearance]]
) -> ScanRanges | None:
    """Sum up scans; None of none.

    Args:
        grids: spacing and extent in mm along (D, H, W) of each scan.
        channels: appearance of each scan, for each channel.
    """
    if not grids or not all(channels):
        return None
    spacing, extent = (np.array([grid[place] for grid in grids]) for place in (0, 1))
    return ScanRanges(
        spacing=triple(_range(column) for column in spacing.T),
        extent=triple(_range(column) for column in extent.T),
        channels=tuple(
            ChannelRanges(
                darkest=_range([one.darkest for one in scans]),
                brightest=_range([one.brightest for one in scans]),
                is_ct=2 * sum(one.is_ct for one in scans) > len(scans),
            )
            for scans in channels
        ),
    )


def joined(several: Sequence[ScanRanges | None]) -> ScanRanges | None:
    """Return ranges that hold those of several trainings, of the same channels; None where one is unknown."""
    known = [ranges for ranges in several if ranges is not None]
    if len(known) < len(several) or not known:
        return None
    return ScanRanges(
        spacing=triple(_hull([ranges.spacing[axis] for ranges in known]) for axis in range(3)),
        extent=triple(_hull([ranges.extent[axis] for ranges in known]) for axis in range(3)),
        channels=tuple(
            ChannelRanges(
                darkest=_hull([one.darkest for one in same]),
                brightest=_hull([one.brightest for one in same]),
                is_ct=any(one.is_ct for one in same),
            )
            for same in zip(*(ranges.channels for ranges in known), strict=False)
        ),
    )


def _hull(ranges: Sequence[Range]) -> Range:
    return min(least for least, _ in ranges), max(most for _, most in ranges)


def _range(values: Sequence[float] | NDArray[np.float64]) -> Range:
    return round(float(min(values)), 4), round(float(max(values)), 4)
