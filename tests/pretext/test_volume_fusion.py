"""Volume Fusion as a task: batches from patches."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

import misfm.models
from misfm.augment.views import ViewSettings, apply_view, sample_view, view_of_mask
from misfm.errors import ConfigError
from misfm.losses import IGNORE
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.volume_fusion import (
    VolumeFusionV1,
    VolumeFusionV2,
    fuse,
    sample_levels_v1,
    sample_levels_v2,
)
from misfm.seeding import generator_for

PATCH_SIZE = (12, 16, 14)
SMALL_BLOCKS = {"block_size": ((3, 6), (3, 6), (3, 6))}
TASKS = [VolumeFusionV1(**SMALL_BLOCKS), VolumeFusionV2(**SMALL_BLOCKS)]


def patches_for(task, batch_size=3, channels=1, seed=0, patch_size=PATCH_SIZE):
    shape = (batch_size, task.num_patches, channels, *task.source_size(patch_size))
    patches = torch.randn(shape, generator=generator_for(seed))
    return patches, Placement.whole(*shape[:2], shape[3:])


def tiny_backbone(in_channels=1):
    torch.manual_seed(0)
    return build_unet(in_channels, PATCH_SIZE, channels=(4, 8, 8))


def without_half(patches, placement, what):
    """The placement and a mask (B, N, D, H, W) of the half that is taken from each patch."""
    gone = torch.zeros_like(patches[:, :, 0], dtype=torch.bool)
    half = gone.shape[-1] // 2
    gone[..., half:] = True
    if what == "hidden":
        return replace(placement, hidden=gone), gone
    valid = placement.valid.clone()
    valid[..., 1, 2] = half
    return replace(placement, valid=valid), gone


@pytest.mark.parametrize("task", TASKS)
def test_targets_are_levels(task):
    batch = task.prepare(*patches_for(task), PATCH_SIZE, generator_for(0))
    assert batch.targets.dtype == torch.int64
    assert batch.targets.shape == (3, *PATCH_SIZE)
    assert set(batch.targets.unique().tolist()) == {0, 1, 2, 3, 4}


def test_v1_fuses_each_patch_with_the_one_before_it():
    task = VolumeFusionV1(p_flip=0, **SMALL_BLOCKS)
    patches, placement = patches_for(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(3))
    for sample, (x, levels) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        background, foreground = patches[sample, 0], patches[sample - 1, 0]
        assert torch.equal(x, fuse(foreground[None], background[None], levels)[0])


def test_v1_mirrors_voxels_without_changing_them():
    task = VolumeFusionV1(p_flip=1, num_blocks=(1, 1), block_size=((1, 1),) * 3)
    patches, placement = patches_for(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(4))
    unpainted = batch.targets[0] == 0
    assert torch.equal(batch.inputs[0, 0][unpainted], patches[0, 0, 0].flip(-3, -2, -1)[unpainted])


@pytest.mark.parametrize("what", ["hidden", "padding"])
def test_v1_leaves_out_what_either_volume_lacks(what):
    patches, placement = patches_for(TASKS[0])
    placement, gone = without_half(patches, placement, what)
    task = VolumeFusionV1(p_flip=0, **SMALL_BLOCKS)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(3))
    assert torch.equal(batch.targets == IGNORE, gone[:, 0])
    # Marked by their intensities, the voxels can be told in the mirrored and fused patches, too.
    task = VolumeFusionV1(num_levels=1, **SMALL_BLOCKS)
    marked = torch.where(gone[:, :, None], 100.0, patches)
    batch = task.prepare(marked, placement, PATCH_SIZE, generator_for(4))
    assert bool((batch.inputs[:, 0].abs() < 50)[batch.targets != IGNORE].all())
    assert 0.5 <= float((batch.targets == IGNORE).float().mean()) < 1


def test_v2_leaves_out_what_a_hidden_voxel_has_part_in():
    task = VolumeFusionV2(**SMALL_BLOCKS)
    patches, whole = patches_for(task)
    placement, gone = without_half(patches, whole, "hidden")
    foreground, background, levels, real = task.draw(patches, placement, PATCH_SIZE, generator_for(5))
    plain = task.draw(patches, whole, PATCH_SIZE, generator_for(5))
    assert plain[3] is None
    assert all(torch.equal(*pair) for pair in zip((foreground, background, levels), plain[:3], strict=True))
    generator = generator_for(5)
    for sample in range(3):
        plans = [
            sample_view(task.views, PATCH_SIZE, placement.valid[sample, i].tolist(), generator)
            for i in (0, 1)
        ]
        expected = torch.zeros(PATCH_SIZE, dtype=torch.bool)
        for mask, plan in zip(gone[sample], plans, strict=True):
            expected |= view_of_mask(mask, plan, PATCH_SIZE)
        assert torch.equal(real[sample], ~expected)
        torch.rand((), generator=generator)
        sample_levels_v2(PATCH_SIZE, generator=generator, **SMALL_BLOCKS)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(5))
    assert torch.equal(batch.targets == IGNORE, ~real)
    assert 0.1 < float(real.float().mean()) < 0.9


def test_v1_refuses_to_fuse_a_patch_with_itself():
    patches, placement = patches_for(TASKS[0], batch_size=1)
    with pytest.raises(ConfigError, match="batch_size to 2"):
        TASKS[0].prepare(patches, placement, PATCH_SIZE, generator_for(0))


@pytest.mark.parametrize("p_inversion", [0.0, 1.0])
def test_v2_is_two_views_fused_and_inverted_together(p_inversion):
    task = VolumeFusionV2(p_inversion=p_inversion, **SMALL_BLOCKS)
    patches, placement = patches_for(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(5))
    generator = generator_for(5)
    for sample in range(3):
        plans = [
            sample_view(task.views, PATCH_SIZE, placement.valid[sample, i].tolist(), generator)
            for i in (0, 1)
        ]
        foreground, background = (apply_view(patches[sample, i], plans[i], PATCH_SIZE) for i in (0, 1))
        torch.rand((), generator=generator)
        levels = sample_levels_v2(PATCH_SIZE, generator=generator, **SMALL_BLOCKS)
        fused = fuse(foreground[None], background[None], levels)[0]
        expected = 1 - fused if p_inversion else fused
        assert torch.equal(batch.targets[sample], levels)
        assert torch.allclose(batch.inputs[sample], expected, atol=1e-6)


def test_v2_sees_nothing_of_the_padding():
    task = VolumeFusionV2(**SMALL_BLOCKS)
    patches, whole = patches_for(task)
    placement = replace(whole, valid=torch.tensor([[2, 3, 4], [11, 12, 18]]).expand(3, 2, 2, 3))
    padded = torch.full_like(patches, 1e6)
    padded[..., 2:11, 3:12, 4:18] = patches[..., 2:11, 3:12, 4:18]
    plain = task.prepare(patches, placement, PATCH_SIZE, generator_for(6))
    assert torch.equal(plain.inputs, task.prepare(padded, placement, PATCH_SIZE, generator_for(6)).inputs)


def test_voxels_whose_level_nobody_could_tell_are_left_out_of_the_loss():
    foreground = torch.rand(2, 2, 4, 4, 4, generator=generator_for(8))
    background = foreground.clone()
    background[:, 1, 2:] += 0.1  # one channel that differs is enough to tell
    levels = torch.ones(2, 4, 4, 4, dtype=torch.int64)
    batch = VolumeFusionV2(min_difference=0.05).fused_batch(foreground, background, levels)
    assert bool((batch.targets[:, :2] == IGNORE).all())
    assert bool((batch.targets[:, 2:] == 1).all())
    assert bool((levels == 1).all())
    published = VolumeFusionV2().fused_batch(foreground, foreground, levels)
    assert torch.equal(published.targets, levels)


def test_air_on_air_is_left_out_of_the_loss_whatever_the_gammas():
    views = ViewSettings(scale=(1, 1), p_flip=0)
    task = VolumeFusionV2(min_difference=1e-3, views=views, **SMALL_BLOCKS)
    patches, placement = patches_for(task)
    patches[..., :5] = patches.min() - 1  # clipped air on one side of both crops
    ignored = task.prepare(patches, placement, PATCH_SIZE, generator_for(13)).targets == IGNORE
    assert bool(ignored[..., :5].all())
    assert float(ignored[..., 5:].float().mean()) < 0.05


def test_score_is_perfect_for_the_truth_and_chance_for_guesses():
    task = VolumeFusionV1()
    levels = sample_levels_v1((16, 32, 32), block_size=((4, 8),) * 3, generator=generator_for(9))[None]
    batch = task.fused_batch(torch.zeros(1, 1, 16, 32, 32), torch.ones(1, 1, 16, 32, 32), levels)
    truth = torch.nn.functional.one_hot(levels, 5).movedim(-1, 1).float()
    assert task.score(20 * truth, batch)["pretext_dice"] == 1
    guesses = truth.flatten(2)[:, :, torch.randperm(levels.numel(), generator=generator_for(10))]
    score = task.score(guesses.view_as(truth), batch)
    assert score["pretext_dice"] == pytest.approx(score["chance_dice"], abs=0.02)
    assert 0.05 < score["chance_dice"] < 0.25


@pytest.mark.parametrize("task", TASKS)
def test_loss_falls_on_one_batch(task):
    patches, placement = patches_for(task, batch_size=2)
    coarse = torch.nn.functional.avg_pool3d(patches.flatten(0, 2), 5, stride=1, padding=2)
    batch = task.prepare(coarse.view_as(patches), placement, PATCH_SIZE, generator_for(11))
    model = task.build_model(tiny_backbone())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = sum(task.loss(model(batch.inputs), batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert max(losses[-5:]) < min(losses[:5])


def test_the_head_has_one_class_more_than_there_are_levels():
    model = VolumeFusionV2(num_levels=2).build_model(tiny_backbone())
    assert isinstance(model, misfm.models.base.SegmentationModel)
    assert model(torch.zeros(1, 1, *PATCH_SIZE)).shape == (1, 3, *PATCH_SIZE)


def test_defaults_are_the_published_values():
    v1, v2 = VolumeFusionV1(), VolumeFusionV2()
    assert (v1.num_levels, v1.num_blocks, v1.block_size) == (4, (10, 40), ((8, 40), (8, 80), (8, 80)))
    assert (v2.num_levels, v2.foreground_ratio, v2.block_size) == (4, 0.7, ((8, 32),) * 3)
    assert v2.views == ViewSettings(
        scale=(0.7, 1.5), low_percentile=(0.1, 2.0), high_percentile=(98.0, 99.9), gamma=(0.7, 1.5)
    )


@pytest.mark.parametrize(
    "wrong", [{"num_levels": 0}, {"block_size": ((8, 4),) * 3}, {"min_difference": -1}, {"blocks": 3}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        VolumeFusionV2(**wrong)
