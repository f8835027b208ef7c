"""Hidden blocks: how many, where, and what the tasks that predict them count."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from misfm.errors import ConfigError
from misfm.pretext import Placement
from misfm.pretext.masks import default_block_size, grid_size, sample_blocks, spread_blocks
from misfm.pretext.s3d import S3D
from misfm.seeding import generator_for

SIZE = (7, 9, 8)
TASK = S3D(mask_ratio=0.6, block_size=(2, 3, 4))


def whole_patches(batch_size=2, channels=2):
    patches = torch.randn(batch_size, 1, channels, *SIZE, generator=generator_for(0))
    return patches, Placement.whole(batch_size, 1, SIZE)


def padded_patches():
    patches, whole = whole_patches()
    valid = torch.tensor([[2, 0, 0], [7, 5, 8]]).expand(2, 1, 2, 3)
    return patches, replace(whole, valid=valid)


@given(st.tuples(*[st.integers(1, 6)] * 3), st.floats(0.01, 0.99), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_exactly_that_share_of_blocks_is_hidden(grid, ratio, seed):
    count = int(ratio * math.prod(grid))
    if count == 0:
        with pytest.raises(ConfigError, match="smaller block_size"):
            sample_blocks(3, grid, ratio, generator_for(seed))
        return
    hidden = sample_blocks(3, grid, ratio, generator_for(seed))
    assert hidden.shape == (3, *grid)
    assert hidden.flatten(1).sum(1).tolist() == [count] * 3


def test_each_sample_hides_other_blocks_and_every_block_is_as_likely():
    hidden = sample_blocks(2000, (2, 3, 4), 0.75, generator_for(1)).float()
    assert not torch.equal(hidden[0], hidden[1])
    assert float((hidden.mean(0) - 0.75).abs().max()) < 0.05


def test_a_voxel_is_hidden_with_its_block_also_where_the_border_cuts_blocks_off():
    block_size = (2, 3, 5)
    assert grid_size(SIZE, block_size) == (4, 3, 2)
    blocks = torch.rand(2, 4, 3, 2, generator=generator_for(2)) < 0.5
    hidden = spread_blocks(blocks, block_size, SIZE)
    assert hidden.shape == (2, *SIZE)
    for sample, d, h, w in product(range(2), *map(range, SIZE)):
        assert hidden[sample, d, h, w] == blocks[sample, d // 2, h // 3, w // 5]


@pytest.mark.parametrize(
    ("patch_size", "block_size"),
    [
        ((160, 160, 160), (16, 16, 16)),
        ((64, 128, 128), (16, 16, 16)),
        ((48, 63, 32), (8, 8, 8)),
        ((12, 16, 14), (2, 4, 2)),
        ((1, 3, 9), (1, 1, 2)),
    ],
)
def test_blocks_are_the_published_ones_where_four_fit(patch_size, block_size):
    assert default_block_size(patch_size) == block_size
    assert S3D().blocks_of(patch_size) == block_size
    assert S3D(block_size=(5, 6, 7)).blocks_of(patch_size) == (5, 6, 7)


def test_a_batch_is_the_patch_without_its_hidden_blocks():
    patches, placement = padded_patches()
    batch = TASK.prepare(patches, placement, SIZE, generator_for(3))
    blocks = sample_blocks(2, (4, 3, 2), 0.6, generator_for(3))
    assert torch.equal(batch.targets, patches[:, 0])
    for sample, d, h, w in product(range(2), *map(range, SIZE)):
        gone, real = bool(blocks[sample, d // 2, h // 3, w // 4]), d >= 2 and h < 5
        expected = torch.zeros(2) if gone else patches[sample, 0, :, d, h, w]
        assert torch.equal(batch.inputs[sample, :, d, h, w], expected)
        assert batch.context[0][sample, d, h, w] == gone
        assert batch.masked[sample, d, h, w] == (gone and real)
        assert batch.visible[sample, d, h, w] == (real and not gone)


def test_the_loss_is_the_squared_error_of_hidden_voxels_that_are_real():
    patches, placement = padded_patches()
    batch = TASK.prepare(patches, placement, SIZE, generator_for(4))
    outputs = torch.randn(2, 2, *SIZE, generator=generator_for(5))
    errors = [
        float((outputs[sample, channel, d, h, w] - patches[sample, 0, channel, d, h, w]) ** 2)
        for sample, channel, d, h, w in product(range(2), range(2), *map(range, SIZE))
        if batch.masked[sample, d, h, w]
    ]
    expected = pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert TASK.loss(outputs, batch)["reconstruction"].item() == expected
    assert TASK.score(outputs, batch)["masked_error"] == expected


def test_the_score_is_beside_that_of_the_mean_of_what_is_visible():
    patches, placement = padded_patches()
    batch = TASK.prepare(patches, placement, SIZE, generator_for(6))
    mean = batch.targets.movedim(1, -1)[batch.visible].mean()
    score = TASK.score(torch.full_like(batch.targets, float(mean)), batch)
    assert score["masked_error"] == pytest.approx(score["mean_error"], rel=1e-5)
    assert score["mean_error"] == pytest.approx(1, abs=0.2)
    assert TASK.score(batch.targets, batch)["masked_error"] == 0


@pytest.mark.parametrize("wrong", [{"mask_ratio": 0}, {"mask_ratio": 1}, {"block_size": (0, 8, 8)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        S3D(**wrong)
