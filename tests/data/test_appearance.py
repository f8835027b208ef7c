"""CT is known from how its voxels are spread, whole or clipped; nothing else is taken for it."""

import numpy as np
import pytest

from misfm.data.appearance import Appearance, ScanRanges, appearance_of, joined, ranges_of


def head(inside, outside, noise=10):
    """A ball of some intensity with texture, surrounded by another."""
    grid = np.indices((24, 28, 28)).astype(float)
    distance = np.sqrt(((grid - 13) ** 2).sum(0))
    texture = np.random.default_rng(0).normal(0, noise, grid.shape[1:])
    return np.rint(np.where(distance < 11, inside + 60 * np.sin(grid[1] / 3), outside) + texture)


CT = head(40, -1000, 15)


def ringing():
    """MR whose interpolation undershoots around the head."""
    image = head(1500, 0)
    image[2:4] = -260
    return image


SCANS = {
    "whole": (CT, True, ""),
    "padded": (np.where(CT < -900, -2000, CT), True, ""),
    "with fractions": (CT * 0.9931, True, ""),
    "clipped": (CT.clip(-160, 240), True, "shows no air"),
    "cut out": (CT[8:18, 8:18, 8:18], True, "shows no air"),
    "without intercept": (CT.clip(-1024) + 1024, False, ""),
    "of one unit": (((CT + 1000) / 1600).clip(0, 1), False, ""),
    "magnitude": (head(600, 5).clip(0), False, ""),
    "ringing": (ringing(), False, "below zero"),
    "phase": (np.random.default_rng(1).integers(-4096, 4096, (20, 20, 20)), False, "no CT in HU"),
    "z-scored": (np.random.default_rng(1).normal(0, 1, (20, 20, 20)), False, ""),
    "constant": (np.full((4, 4, 4), 7), False, ""),
}


@pytest.mark.parametrize(("voxels", "is_ct", "doubt"), SCANS.values(), ids=SCANS)
def test_ct_and_other_scans_are_told_apart(voxels, is_ct, doubt):
    seen = appearance_of(voxels)
    assert seen.is_ct == is_ct
    assert doubt in seen.doubt
    assert bool(seen.doubt) == bool(doubt)


def seen(darkest, brightest, is_ct=True):
    return Appearance(darkest=darkest, brightest=brightest, is_ct=is_ct)


def test_scans_of_a_training_are_summed_up_and_so_are_trainings():
    one = ranges_of(
        [((1, 2, 2), (100, 50, 60)), ((3, 2, 1), (120, 40, 60))], [[seen(-1000, 700), seen(-990, 900)]]
    )
    assert one is not None
    assert one.spacing == ((1, 3), (2, 2), (1, 2))
    assert one.extent == ((100, 120), (40, 50), (60, 60))
    (channel,) = one.channels
    assert (channel.darkest, channel.brightest, channel.is_ct) == ((-1000, -990), (700, 900), True)
    assert channel.holds(seen(-1100, 950))
    assert not channel.holds(seen(0, 1900))
    other = ranges_of([((4, 2, 2), (90, 50, 60))], [[seen(-500, 300)]])
    both = joined([one, other])
    assert both is not None
    assert both.spacing[0] == (1, 4)
    assert both.extent[0] == (90, 120)
    assert both.channels[0].darkest == (-1000, -500)
    assert ScanRanges.model_validate_json(both.model_dump_json()) == both
    assert joined([one, None]) is None
    assert ranges_of([], [[]]) is None
