"""Context restoration: which boxes change places, and that no voxel is lost."""

from dataclasses import replace

import pytest
import torch

from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.patch_swapping import PatchSwapping, apply_swaps, overlap, sample_swaps
from misfm.seeding import generator_for
from misfm.volume import Box

SIZE = (12, 20, 16)
TASK = PatchSwapping(num_swaps=(3, 6), block_size=(3, 4, 2))


def batch_of(task=TASK, valid=((0, 0, 0), SIZE), seed=0):
    patches = torch.randn(2, 1, 1, *SIZE, generator=generator_for(seed))
    placement = replace(Placement.whole(2, 1, SIZE), valid=torch.tensor(valid).expand(2, 1, 2, 3))
    return task.prepare(patches, placement, SIZE, generator_for(seed, "prepare")), patches


def test_voxels_change_places_one_by_one():
    image = torch.randn(2, *SIZE, generator=generator_for(1))
    swaps = sample_swaps(TASK, ((0, 0, 0), SIZE), generator_for(2))
    expected = image.clone()
    for swap in swaps:
        for d in range(3):
            for h in range(4):
                for w in range(2):
                    here = tuple(a + b for a, b in zip(swap.first.start, (d, h, w), strict=True))
                    there = tuple(a + b for a, b in zip(swap.second.start, (d, h, w), strict=True))
                    kept = expected[(slice(None), *here)].clone()
                    expected[(slice(None), *here)] = expected[(slice(None), *there)]
                    expected[(slice(None), *there)] = kept
    before = image.clone()
    assert torch.equal(apply_swaps(image, swaps), expected)
    assert torch.equal(image, before)
    assert not torch.equal(expected, before)


def test_swapping_backwards_restores():
    image = torch.randn(1, *SIZE, generator=generator_for(3))
    swaps = sample_swaps(TASK, ((0, 0, 0), SIZE), generator_for(4))
    assert torch.equal(apply_swaps(apply_swaps(image, swaps), swaps[::-1]), image)


def test_no_voxel_is_lost_or_invented_and_padding_stays_out():
    batch, patches = batch_of(valid=((2, 0, 3), (12, 17, 16)))
    padding = ~batch.real[:, None]
    assert torch.equal(batch.targets, patches[:, 0])
    assert torch.equal(batch.inputs[padding], batch.targets[padding])
    assert torch.equal(batch.inputs.flatten(1).sort(1).values, batch.targets.flatten(1).sort(1).values)
    assert not torch.equal(batch.inputs, batch.targets)


@pytest.mark.parametrize(
    "extent", [((0, 0, 0), (16, 40, 40)), ((3, 0, 5), (9, 2, 40)), ((0, 0, 0), (1, 1, 2))]
)
def test_pairs_share_no_voxel_and_lie_within(extent):
    for seed in range(20):
        swaps = sample_swaps(PatchSwapping(), extent, generator_for(seed))
        assert 10 <= len(swaps) <= 20
        for swap in swaps:
            assert swap.first.size == swap.second.size
            voxels = [torch.zeros(extent[1]) for _ in range(2)]
            for mask, box in zip(voxels, (swap.first, swap.second), strict=True):
                assert all(a >= b for a, b in zip(box.start, extent[0], strict=True))
                assert all(a <= b for a, b in zip(box.stop, extent[1], strict=True))
                mask[box.slices] = 1
            assert not bool((voxels[0] * voxels[1]).any())


def test_boxes_have_the_published_size_where_there_is_room():
    (large, *_), (small, *_) = (
        sample_swaps(PatchSwapping(), ((0, 0, 0), size), generator_for(5))
        for size in [(64, 64, 96), (16, 40, 80)]
    )
    assert large.first.size == (8, 16, 16)
    assert small.first.size == (4, 10, 16)


def test_overlap_means_a_common_voxel():
    box = Box((2, 2, 2), (2, 2, 2))
    assert overlap(box, Box((3, 3, 3), (1, 1, 1)))
    assert not overlap(box, Box((4, 2, 2), (2, 2, 2)))


def test_a_single_voxel_has_no_partner():
    assert sample_swaps(TASK, ((4, 4, 4), (5, 5, 5)), generator_for(6)) == []


def test_error_is_measured_where_boxes_moved():
    batch, _ = batch_of()
    moved = batch.inputs != batch.targets
    outputs = torch.where(moved, batch.targets + 2, batch.targets)
    assert TASK.score(outputs, batch)["restored_error"] == pytest.approx(4, rel=1e-5)
    expected = 4 * float(moved.float().mean())
    assert float(TASK.loss(outputs, batch)["restoration"]) == pytest.approx(expected, rel=1e-5)
    # two random voxels differ by twice the variance, the mean by the variance itself
    score = TASK.score(batch.inputs, batch)
    assert score["unrestored_error"] == pytest.approx(2, abs=0.5)
    assert score["mean_error"] == pytest.approx(1, abs=0.25)


def test_loss_falls_on_one_batch(overfit):
    batch, _ = batch_of()
    torch.manual_seed(0)
    model = TASK.build_model(build_unet(1, SIZE, channels=(4, 8)))
    losses = overfit(TASK, model, batch)
    assert max(losses[-5:]) < 0.6 * losses[0]
