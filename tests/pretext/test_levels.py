"""The level maps of Volume Fusion v1 and v2 against loops a reader can check, and the fusion they steer."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misfm.pretext.volume_fusion import fuse, sample_levels_v1, sample_levels_v2
from misfm.seeding import generator_for

PAPER_SHAPE = (64, 128, 128)
SAMPLERS = [sample_levels_v1, sample_levels_v2]

seeds = st.integers(0, 2**31)
shapes = st.tuples(*[st.integers(1, 14)] * 3)
ranges = st.tuples(st.integers(1, 8), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair)))
block_sizes = st.tuples(ranges, ranges, ranges)


def uniform(limits, generator):
    """One integer from an inclusive range, drawn as the samplers draw one."""
    return int(torch.randint(limits[0], limits[1] + 1, (), generator=generator))


def boxes_in_a_loop(shape, num_levels, num_blocks, block_size, generator):
    """v1 as the paper tells it, voxel by voxel, from the same random numbers."""
    count = uniform(num_blocks, generator)
    sides = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    centers = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    painted = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    levels = torch.zeros(shape, dtype=torch.int64)
    for box in range(count):
        spans = []
        for axis in range(3):
            low, high = block_size[axis]
            side = low + int(sides[box, axis] * (high - low + 1))
            start = int(centers[box, axis] * shape[axis]) - side // 2
            spans.append([i for i in range(start, start + side) if 0 <= i < shape[axis]])
        for voxel in itertools.product(*spans):
            levels[voxel] = 1 + int(painted[box, 0] * num_levels)
    return levels


def grid_in_a_loop(shape, num_levels, foreground_ratio, block_size, generator):
    """v2 as the paper tells it, block by block, from the same random numbers."""
    sides = [uniform(limits, generator) for limits in block_size]
    sides = [min(side, length) for side, length in zip(sides, shape, strict=True)]
    counts = [length // side for length, side in zip(shape, sides, strict=True)]
    starts = [
        uniform((0, length - n * side), generator)
        for length, n, side in zip(shape, counts, sides, strict=True)
    ]
    total = counts[0] * counts[1] * counts[2]
    drawn = torch.randint(1, num_levels + 1, (total,), generator=generator)
    foreground = set(torch.randperm(total, generator=generator)[: int(foreground_ratio * total)].tolist())
    levels = torch.zeros(shape, dtype=torch.int64)
    for number, block in enumerate(itertools.product(*map(range, counts))):
        begin = [start + i * side for start, i, side in zip(starts, block, sides, strict=True)]
        if number in foreground:
            d, h, w = (slice(first, first + side) for first, side in zip(begin, sides, strict=True))
            levels[d, h, w] = drawn[number]
    return levels


@given(seeds, shapes, st.integers(1, 5), ranges, block_sizes)
@settings(max_examples=60, deadline=None)
def test_v1_paints_the_boxes_of_the_loop(seed, shape, num_levels, num_blocks, block_size):
    options = {"num_levels": num_levels, "num_blocks": num_blocks, "block_size": block_size}
    levels = sample_levels_v1(shape, **options, generator=generator_for(seed))
    assert levels.dtype == torch.int64
    assert torch.equal(levels, boxes_in_a_loop(shape, **options, generator=generator_for(seed)))


@given(seeds, shapes, st.integers(1, 5), st.floats(0, 1), block_sizes)
@settings(max_examples=60, deadline=None)
def test_v2_fills_the_grid_of_the_loop(seed, shape, num_levels, foreground_ratio, block_size):
    options = {"num_levels": num_levels, "foreground_ratio": foreground_ratio, "block_size": block_size}
    levels = sample_levels_v2(shape, **options, generator=generator_for(seed))
    assert levels.dtype == torch.int64
    assert torch.equal(levels, grid_in_a_loop(shape, **options, generator=generator_for(seed)))


@pytest.mark.parametrize("seed", range(20))
def test_v2_is_whole_blocks_of_one_level_within_an_empty_margin(seed):
    sides, shape = (3, 4, 5), (11, 13, 12)  # 3 x 3 x 2 blocks, so 18 of which floor(0.7 * 18) = 12
    levels = sample_levels_v2(
        shape, block_size=tuple((side, side) for side in sides), generator=generator_for(seed)
    )
    fits = []
    for d, h, w in itertools.product(range(3), range(2), range(3)):
        inner = levels[d : d + 9, h : h + 12, w : w + 10]
        blocks = inner.unflatten(0, (3, 3)).unflatten(2, (3, 4)).unflatten(4, (2, 5))
        blocks = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)
        uniform_blocks = bool((blocks == blocks[..., :1]).all())
        whole = int((inner > 0).sum()) == int((levels > 0).sum())
        fits.append(uniform_blocks and whole and int((blocks[..., 0] > 0).sum()) == 12)
    assert any(fits)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_v2_foreground_is_an_exact_share_rounded_down(ratio):
    levels = sample_levels_v2(
        (3, 3, 3), foreground_ratio=ratio, block_size=((1, 1),) * 3, generator=generator_for(0)
    )
    assert int((levels > 0).sum()) == int(27 * ratio)


def test_class_shares_are_those_of_the_papers():
    shares = {}
    for sampler in SAMPLERS:
        generator = generator_for("shares")
        maps = torch.stack([sampler(PAPER_SHAPE, generator=generator) for _ in range(40)])
        shares[sampler] = torch.bincount(maps.flatten(), minlength=5) / maps.numel()
    assert shares[sample_levels_v1][0] == pytest.approx(0.46, abs=0.05)
    assert shares[sample_levels_v1][1:].tolist() == pytest.approx([0.133] * 4, abs=0.03)
    assert shares[sample_levels_v2][0] == pytest.approx(0.45, abs=0.03)
    assert shares[sample_levels_v2][1:].tolist() == pytest.approx([0.137] * 4, abs=0.02)


def test_v1_ranges_are_inclusive_and_boxes_are_centred_anywhere():
    generator = generator_for(1)
    sizes, voxels, painted = set(), set(), set()
    for _ in range(400):
        levels = sample_levels_v1((3, 3, 3), num_blocks=(1, 1), block_size=((1, 1),) * 3, generator=generator)
        voxels.add(tuple(levels.nonzero()[0].tolist()))
        painted.add(int(levels.max()))
        sides = sample_levels_v1(
            (40, 1, 1), num_blocks=(0, 1), block_size=((1, 3), (1, 1), (1, 1)), generator=generator
        )
        sizes.add(int((sides > 0).sum()))
    assert voxels == set(itertools.product(range(3), repeat=3))
    assert painted == {1, 2, 3, 4}
    assert sizes == {0, 1, 2, 3}  # 0: no box at all


def test_v2_ranges_are_inclusive():
    generator = generator_for(2)
    maps = [
        sample_levels_v2((7, 1, 1), num_levels=1, block_size=((2, 4), (1, 1), (1, 1)), generator=generator)
        for _ in range(200)
    ]
    # floor(0.7 n) blocks: 2 of three with side 2, 1 of two with side 3, none of one with side 4.
    assert {int(levels.sum()) for levels in maps} == {4, 3, 0}
    assert {int(levels.nonzero()[0, 0]) for levels in maps if int(levels.sum()) == 3} == {0, 1, 3, 4}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_maps_smaller_than_the_blocks_are_possible(sampler):
    levels = sampler((5, 1, 7), generator=generator_for(3))
    assert levels.shape == (5, 1, 7)
    assert int(levels.min()) >= 0
    assert int(levels.max()) <= 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_generator_decides_everything(sampler):
    torch.manual_seed(0)
    first = sampler((16, 24, 24), generator=generator_for(7))
    torch.manual_seed(1)
    assert torch.equal(first, sampler((16, 24, 24), generator=generator_for(7)))
    assert not torch.equal(first, sampler((16, 24, 24), generator=generator_for(8)))


@pytest.mark.parametrize("num_levels", [1, 4, 8])
@pytest.mark.parametrize("batched", [False, True])
def test_fusion_is_the_formula(num_levels, batched):
    generator = generator_for(4)
    foreground, background = torch.randn(2, 3, 2, 4, 5, 6, generator=generator)
    shape = (3, 4, 5, 6) if batched else (4, 5, 6)
    levels = torch.randint(0, num_levels + 1, shape, generator=generator)
    before = [x.clone() for x in (foreground, background, levels)]
    fused = fuse(foreground, background, levels, num_levels)
    alpha = levels.expand(3, 4, 5, 6)[:, None] / num_levels
    assert torch.allclose(fused, alpha * foreground + (1 - alpha) * background, atol=1e-6)
    for now, then in zip((foreground, background, levels), before, strict=True):
        assert torch.equal(now, then)


def test_fusion_is_exact_at_both_ends_and_keeps_the_type():
    foreground = torch.randn(1, 1, 2, 2, 2, dtype=torch.float64, generator=generator_for(5))
    background = torch.full_like(foreground, 1 / 3)
    everywhere = torch.full((2, 2, 2), 4)
    assert torch.equal(fuse(foreground, background, everywhere), foreground)
    assert torch.equal(fuse(foreground, background, 0 * everywhere), background)
    assert fuse(foreground, background, everywhere).dtype == torch.float64
    single = fuse(foreground.bfloat16(), background.bfloat16(), everywhere.to(torch.uint8))
    assert single.dtype == torch.bfloat16


@given(seeds, st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_fused_intensities_lie_between_the_two(seed, a, b):
    levels = sample_levels_v2((6, 6, 6), block_size=((1, 3),) * 3, generator=generator_for(seed))
    fused = fuse(torch.full((1, 1, 6, 6, 6), a), torch.full((1, 1, 6, 6, 6), b), levels)
    assert float(fused.min()) >= min(a, b) - 1e-5
    assert float(fused.max()) <= max(a, b) + 1e-5
