"""SwinUNETR's task: turned views with cut-outs, and three heads on the bottleneck."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from misfm.errors import ConfigError
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.swinunetr import Answers, Cutout, SwinUNETR, apply_cutouts, sample_boxes
from misfm.seeding import generator_for
from misfm.volume import Box

PATCH_SIZE = (6, 8, 12)


def sources(task, batch_size=3, extent=None):
    size = task.source_size(PATCH_SIZE)
    patches = torch.randn(batch_size, 1, 2, *size, generator=generator_for(0))
    placement = Placement.whole(batch_size, 1, size)
    if extent is not None:
        placement = replace(placement, valid=torch.tensor(extent).expand(batch_size, 1, 2, 3))
    return patches, placement


def tiny_model(task):
    torch.manual_seed(0)
    strides = [(1, 2, 2), (2, 2, 2)]
    return task.build_model(build_unet(2, PATCH_SIZE, channels=(4, 8, 8), strides=strides))


def test_targets_are_the_middle_of_turned_sources():
    task = SwinUNETR()
    assert task.source_size(PATCH_SIZE) == (6, 12, 12)
    patches, placement = sources(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(1))
    assert batch.inputs.shape == batch.targets.shape == (6, 2, *PATCH_SIZE)
    for index, quarters in enumerate(batch.quarters.tolist()):
        turned = np.rot90(patches[index // 2, 0].numpy(), quarters, axes=(2, 3))
        assert np.array_equal(batch.targets[index].numpy(), turned[:, :, 2:10])
    assert bool(batch.real.all())
    assert len(set(batch.quarters.tolist())) > 1


def test_padding_turns_with_the_patch_and_is_not_restored():
    task = SwinUNETR(max_share=0)
    patches, placement = sources(task, extent=[[0, 0, 0], [6, 12, 7]])
    patches[..., 7:] = 50
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(2))
    assert torch.equal(batch.real, (batch.targets != 50).all(1))
    assert not bool(batch.real.all())
    wrong = torch.where(batch.real[:, None], batch.targets, 0)
    outputs = Answers(torch.zeros(6, 4), torch.randn(6, 5), wrong)
    assert float(task.loss(outputs, batch)["reconstruction"]) == 0


def test_boxes_fill_a_share_and_keep_their_sides():
    generator = generator_for(3)
    size, shares = (20, 40, 60), []
    for _ in range(200):
        boxes = sample_boxes(size, 0.3, (0.05, 0.25), generator)
        for box in boxes:
            for start, side, stop, length in zip(box.start, box.size, box.stop, size, strict=True):
                assert start >= 0
                assert stop <= length
                assert 0.05 * length <= side <= 0.25 * length
        shares.append(sum(math.prod(box.size) for box in boxes) / math.prod(size))
    assert max(shares) < 0.3 + 0.25**3
    assert np.mean(shares) == pytest.approx(0.15, abs=0.03)
    assert sample_boxes(size, 0, (0.05, 0.25), generator) == ()


def test_cutouts_by_a_loop():
    views = torch.randn(3, 2, 6, 7, 8, generator=generator_for(4))
    before = views.clone()
    noise, graft = Box((0, 1, 2), (3, 4, 2)), Box((2, 0, 0), (2, 7, 4))
    plan = Cutout((noise,), 5, donor=2, grafts=(graft,))
    nothing = Cutout((), 6, donor=0, grafts=())
    changed = apply_cutouts(views, [nothing, plan, nothing])
    assert torch.equal(views, before)
    assert torch.equal(changed[0::2], views[0::2])
    low, high = views[1].amin((1, 2, 3)), views[1].amax((1, 2, 3))
    for c, d, h, w in np.ndindex(2, 6, 7, 8):
        value = changed[1, c, d, h, w]
        if 2 <= d < 4 and w < 4:
            assert value == views[2, c, d, h, w]
        elif d < 3 and 1 <= h < 5 and 2 <= w < 4:
            assert low[c] <= value <= high[c]
            assert value != views[1, c, d, h, w]
        else:
            assert value == views[1, c, d, h, w]


def test_donors_are_the_same_view_of_other_volumes():
    task, generator = SwinUNETR(), generator_for(5)
    for index in range(6):
        donors = {task.sample_cutout(index, 3, PATCH_SIZE, generator).donor for _ in range(40)}
        assert donors == {index % 2, 2 + index % 2, 4 + index % 2} - {index}


def test_a_single_volume_is_refused():
    task = SwinUNETR()
    with pytest.raises(ConfigError, match="batch_size"):
        task.prepare(*sources(task, batch_size=1), PATCH_SIZE, generator_for(0))


def test_a_single_voxel_at_the_bottleneck_is_refused():
    model = tiny_model(SwinUNETR())
    with pytest.raises(ConfigError, match="larger patch_size"):
        model(torch.zeros(2, 2, 2, 4, 4))


def test_heads_restore_patches_of_any_size():
    outputs = tiny_model(SwinUNETR(embedding_channels=7))(torch.randn(2, 2, 5, 9, 10))
    assert outputs.quarters.shape == (2, 4)
    assert outputs.vectors.shape == (2, 7)
    assert outputs.restored.shape == (2, 2, 5, 9, 10)


def test_score_is_perfect_for_the_truth_and_chance_for_the_mean():
    task = SwinUNETR()
    patches, placement = sources(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(6))
    logits = torch.nn.functional.one_hot(batch.quarters, 4).float()
    truth = Answers(logits, torch.eye(3).repeat_interleave(2, 0), batch.targets)
    score = task.score(truth, batch)
    assert (score["rotation_accuracy"], score["matching_accuracy"], score["restored_error"]) == (1, 1, 0)
    assert (score["rotation_chance"], score["chance_accuracy"]) == (0.25, pytest.approx(1 / 5))
    mean = truth._replace(restored=torch.full_like(batch.targets, float(batch.targets.mean())))
    flat = task.score(mean, batch)
    assert flat["restored_error"] == pytest.approx(flat["mean_error"], rel=1e-5)


def test_loss_falls_on_one_batch(overfit):
    task = SwinUNETR()
    patches, placement = sources(task)
    smooth = torch.nn.functional.avg_pool3d(patches.flatten(0, 1), 3, 1, 1).view_as(patches)
    batch = task.prepare(smooth, placement, PATCH_SIZE, generator_for(7))
    model = tiny_model(task)
    losses = overfit(task, model, batch, steps=30)
    assert losses[-1] < 0.7 * losses[0]
