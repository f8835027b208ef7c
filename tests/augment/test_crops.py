"""Crops: where they may lie, what they share, how they are varied."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misfm.augment.crops import (
    CropSettings,
    Turn,
    apply_turn,
    apply_variation,
    cut,
    overlap,
    sample_start,
    sample_start_near,
    sample_turn,
    sample_variation,
    start_limits,
)
from misfm.seeding import generator_for

SOURCE = (12, 15, 9)
SIDES = st.tuples(*(st.integers(1, side) for side in SOURCE))


@given(st.integers(0, 1000), SIDES, st.lists(st.floats(0, 1), min_size=6, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_within_what_is_real_or_holds_all_of_it(seed, size, draws):
    extent = [[], []]
    for side, a, b in zip(SOURCE, draws[:3], draws[3:], strict=True):
        low = int(a * (side - 1))
        extent[0].append(low)
        extent[1].append(low + 1 + int(b * (side - low - 1)))
    start = sample_start(size, SOURCE, extent, generator_for(seed))
    for first, side, length, low, high in zip(start, size, SOURCE, *extent, strict=True):
        assert 0 <= first <= length - side
        assert (low <= first and first + side <= high) or (first <= low and first + side >= high)


def test_all_places_are_drawn():
    generator = generator_for(0)
    extent = [[1, 2, 0], [12, 15, 9]]
    starts = {sample_start((10, 13, 9), SOURCE, extent, generator) for _ in range(100)}
    assert starts == {(1, 2, 0), (2, 2, 0)}


def test_a_neighbour_is_within_reach_and_within_limits():
    limits = start_limits((4, 4, 9), SOURCE, [[0, 0, 0], SOURCE])
    generator = generator_for(1)
    starts = {sample_start_near((7, 1, 0), (2, 2, 4), limits, generator) for _ in range(300)}
    assert starts == set(product(range(5, 9), range(0, 4), [0]))


@given(SIDES, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_overlap_counts_common_voxels(size, seed):
    generator = generator_for(seed)
    starts = [sample_start(size, SOURCE, [[0, 0, 0], SOURCE], generator) for _ in range(5)]
    shares = overlap(torch.tensor(starts[:2]), torch.tensor(starts[2:]), size)
    for i, j in product(range(2), range(3)):
        marked = torch.zeros(SOURCE)
        cut(marked, starts[i], size).add_(1)
        cut(marked, starts[2 + j], size).add_(1)
        common = int((marked == 2).sum())
        assert float(shares[i, j]) == pytest.approx(common / (size[0] * size[1] * size[2]))


def test_turns_keep_the_size_and_are_all_drawn():
    generator = generator_for(2)
    square = {sample_turn(CropSettings(), (6, 6, 4), generator) for _ in range(500)}
    assert len(square) == 8 * 4
    oblong = {sample_turn(CropSettings(), (6, 5, 4), generator) for _ in range(200)}
    assert {turn.quarters for turn in oblong} == {0, 2}
    still = CropSettings(quarter_turns=False, p_flip=0)
    assert sample_turn(still, (6, 6, 4), generator) == Turn()
    x = torch.rand(1, 6, 5, 4)
    assert torch.equal(apply_turn(x, Turn((-1,), 2)), x.flip(-3, -2, -1))
    assert apply_turn(torch.rand(1, 6, 6, 4), Turn((), 1)).shape == (1, 6, 6, 4)


def test_varying_leaves_the_crops_alone_and_repeats():
    crops = torch.randn(4, 2, 6, 6, 4)
    before = crops.clone()
    plan = sample_variation(CropSettings(), 4, (6, 6, 4), generator_for(3))
    varied = apply_variation(crops, plan)
    assert torch.equal(crops, before)
    assert torch.equal(varied, apply_variation(crops, plan))
    assert varied.shape == crops.shape
    nothing = {
        f"p_{kind}": 0 for kind in ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
    }
    still = CropSettings(quarter_turns=False, p_flip=0, intensities=nothing)
    assert torch.equal(apply_variation(crops, sample_variation(still, 4, (6, 6, 4), generator_for(4))), crops)
