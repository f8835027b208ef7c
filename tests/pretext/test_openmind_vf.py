"""Volume Fusion as nnssl trains it: boxes, augmentation before the fusion, loss."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.augment.mirrors import flip, sample_flips
from misfm.errors import ConfigError
from misfm.losses import IGNORE
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.openmind_vf import OpenMindVolumeFusion, sample_levels
from misfm.seeding import draw_int, generator_for

SIZE = (12, 16, 14)
TASK = OpenMindVolumeFusion(smallest_block=3)
PLAIN = IntensitySettings(
    p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0, p_gamma_inverted=0
)


def patches_for(volumes=3, seed=0):
    patches = torch.randn(volumes, 1, 1, *SIZE, generator=generator_for(seed))
    return patches, Placement.whole(volumes, 1, SIZE)


def test_boxes_are_painted_one_by_one():
    for seed in range(5):
        generator = generator_for(seed)
        expected = torch.zeros(SIZE, dtype=torch.int64)
        for _ in range(draw_int(10, 39, generator)):
            sides = [draw_int(3, most, generator) for most in (7, 10, 8)]  # 5/8 of 12, 16, 14
            starts = [draw_int(0, a - b, generator) for a, b in zip(SIZE, sides, strict=True)]
            level = draw_int(0, 4, generator)
            for d in range(sides[0]):
                for h in range(sides[1]):
                    for w in range(sides[2]):
                        expected[starts[0] + d, starts[1] + h, starts[2] + w] = level
        assert torch.equal(sample_levels(TASK, SIZE, generator_for(seed)), expected)


def test_most_voxels_are_background():
    task = OpenMindVolumeFusion(smallest_block=2)  # a quarter of nnssl's size: sides 2 to 25 of 40
    maps = torch.stack([sample_levels(task, (40, 40, 40), generator_for(i)) for i in range(100)])
    shares = torch.bincount(maps.flatten(), minlength=5) / maps.numel()
    assert float(shares[0]) == pytest.approx(0.62, abs=0.05)
    assert shares[1:].tolist() == pytest.approx([0.09] * 4, abs=0.025)


def test_both_volumes_are_augmented_before_they_are_fused():
    patches, placement = patches_for()
    batch = TASK.prepare(patches, placement, SIZE, generator_for(3))
    generator = generator_for(3)
    images = patches[:, 0]
    images = apply_intensities(images, sample_intensities(3, IntensitySettings(p_gamma=0.37), generator))
    images = [flip(image, sample_flips(0.5, generator)) for image in images]
    for sample in range(3):
        levels = sample_levels(TASK, SIZE, generator)
        alpha = levels / 4
        expected = alpha * images[sample - 1] + (1 - alpha) * images[sample]
        assert torch.equal(batch.targets[sample], levels)
        assert torch.allclose(batch.inputs[sample], expected, atol=1e-6)


def test_without_augmentation_volumes_are_only_fused():
    task = OpenMindVolumeFusion(p_flip=0, intensities=PLAIN, smallest_block=3)
    patches, placement = patches_for()
    batch = task.prepare(patches, placement, SIZE, generator_for(4))
    for sample in range(3):
        background, foreground = batch.targets[sample] == 0, batch.targets[sample] == 4
        assert torch.equal(batch.inputs[sample, 0][background], patches[sample, 0, 0][background])
        assert torch.equal(batch.inputs[sample, 0][foreground], patches[sample - 1, 0, 0][foreground])


def test_padding_of_either_volume_is_left_out_of_the_loss():
    task = OpenMindVolumeFusion(p_flip=0, smallest_block=3)
    patches, placement = patches_for(volumes=2)
    valid = placement.valid.clone()
    valid[0, 0], valid[1, 0] = torch.tensor([[2, 0, 0], SIZE]), torch.tensor([[0, 0, 0], [12, 16, 10]])
    batch = task.prepare(patches, replace(placement, valid=valid), SIZE, generator_for(5))
    ignored = batch.targets == IGNORE
    assert bool(ignored[:, :2].all())
    assert bool(ignored[..., 10:].all())
    assert not bool(ignored[:, 2:, :, :10].any())


def test_the_loss_is_dice_and_cross_entropy_of_each_sample():
    patches, placement = patches_for()
    batch = TASK.prepare(patches, placement, SIZE, generator_for(6))
    logits = torch.randn(3, 5, *SIZE, generator=generator_for(7))
    dice = 0.0
    for scores, levels in zip(logits.softmax(1), batch.targets, strict=True):
        for level in range(5):
            truth = (levels == level).float()
            overlap = float((scores[level] * truth).sum())
            dice += (2 * overlap + 1e-5) / float(scores[level].sum() + truth.sum() + 1e-5) / 15
    terms = TASK.loss(logits, batch)
    assert float(terms["dice_loss"]) == pytest.approx(1 - dice, rel=1e-4)
    assert float(terms["cross_entropy"]) == pytest.approx(
        float(F.cross_entropy(logits, batch.targets)), rel=1e-5
    )


def test_a_single_volume_is_not_fused_with_itself():
    with pytest.raises(ConfigError, match="batch_size to 2"):
        TASK.prepare(*patches_for(volumes=1), SIZE, generator_for(8))


def test_loss_falls_on_one_batch(overfit):
    patches, placement = patches_for(volumes=2)
    smooth = F.avg_pool3d(patches[:, 0], 5, stride=1, padding=2)[:, None]
    batch = TASK.prepare(smooth, placement, SIZE, generator_for(9))
    torch.manual_seed(0)
    model = TASK.build_model(build_unet(1, SIZE, channels=(4, 8, 8)))
    losses = overfit(TASK, model, batch)
    assert losses[-1] < 0.85 * losses[0]
