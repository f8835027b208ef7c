"""Augmentation: the two halves agree, labels stay true, and every transform does what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from misfm.augment.elastic import displacement_field
from misfm.augment.labelled import AugmentSettings, apply_augmentation, rotation, sample_augmentation

OFF = {
    f"p_{name}": 0.0
    for name in ("spatial", "noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
}
ON = dict.fromkeys(OFF, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape=(2, 1, 12, 16, 20), seed=0):
    image = torch.randn(shape, generator=seeded(seed))
    return image, (image[:, 0] > 1).long()


def test_all_off_returns_equal_but_fresh_tensors():
    image, label = batch()
    plan = sample_augmentation(image.shape, AugmentSettings(**OFF), seeded())
    new_image, new_label = apply_augmentation(image, label, plan)
    assert torch.equal(new_image, image)
    assert torch.equal(new_label, label)
    assert new_image.data_ptr() != image.data_ptr()
    assert new_label.data_ptr() != label.data_ptr()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), channels=st.integers(1, 2), dtype=st.sampled_from([torch.int64, torch.uint8])
)
def test_same_plan_same_output_and_input_untouched(seed, channels, dtype):
    image, label = batch((3, channels, 9, 10, 11), seed)
    label = label.to(dtype)
    kept_image, kept_label = image.clone(), label.clone()
    plan = sample_augmentation(image.shape, AugmentSettings(**ON, flip_axes=("D", "W")), seeded(seed))
    first, second = apply_augmentation(image, label, plan), apply_augmentation(image, label, plan)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[1].dtype == dtype
    assert torch.isfinite(first[0]).all()
    assert set(first[1].unique().tolist()) <= set(label.unique().tolist()) | {0}
    assert torch.equal(image, kept_image)
    assert torch.equal(label, kept_label)


def test_generator_state_decides_the_plan():
    draw = lambda seed: sample_augmentation((4, 1, 8, 8, 8), AugmentSettings(**ON), seeded(seed))  # noqa: E731
    assert torch.equal(draw(1).matrix, draw(1).matrix)
    assert not torch.equal(draw(1).matrix, draw(2).matrix)


def test_image_and_label_move_together():
    image = torch.zeros(4, 1, 24, 24, 24)
    image[:, :, 6:14, 8:18, 5:13] = 1
    plan = sample_augmentation(image.shape, AugmentSettings(**{**OFF, "p_spatial": 1}), seeded(3))
    new_image, new_label = apply_augmentation(image, image[:, 0].long(), plan)
    inside = new_image[:, 0] > 0.5
    dice = 2 * (inside & (new_label == 1)).sum() / (inside.sum() + new_label.sum())
    assert dice > 0.95
    assert new_label.sum() > 0


def test_quarter_turn_moves_voxels_where_a_rotation_by_hand_does():
    image, label = batch((1, 1, 5, 7, 7))
    plan = sample_augmentation(image.shape, AugmentSettings(**OFF), seeded())
    plan = replace(plan, matrix=rotation(torch.tensor([[torch.pi / 2, 0, 0]])))
    new_image, new_label = apply_augmentation(image, label, plan)
    assert torch.allclose(new_image, image.rot90(-1, (3, 4)), atol=1e-4)
    assert torch.equal(new_label, label.rot90(-1, (2, 3)))


def test_rotation_of_an_anisotropic_patch_is_rigid_in_millimetres():
    """A 12 mm cube on 2 x 1 x 1 mm voxels keeps its volume and does not lean when turned about H."""
    image = torch.zeros(1, 1, 24, 48, 48)
    image[:, :, 9:15, 18:30, 18:30] = 1
    plan = sample_augmentation(image.shape, AugmentSettings(**OFF), seeded(), spacing=(2, 1, 1))
    quarter = replace(plan, matrix=rotation(torch.tensor([[0, torch.pi / 2, 0]])))
    turned, _ = apply_augmentation(image, image[:, 0].long(), quarter)
    assert torch.equal(turned > 0.5, image > 0.5)
    eighth = replace(plan, matrix=rotation(torch.tensor([[0, torch.pi / 4, 0]])))
    turned, _ = apply_augmentation(image, image[:, 0].long(), eighth)
    assert turned.sum().item() == pytest.approx(image.sum().item(), rel=0.02)


def test_thick_slices_are_rotated_in_plane_and_keep_their_resolution():
    plan = sample_augmentation((8, 1, 8, 8, 8), AugmentSettings(**ON), seeded(), spacing=(5, 1, 1))
    matrix = plan.matrix / plan.matrix[:, :1, :1]
    assert torch.equal(matrix[:, 0], torch.tensor([1.0, 0, 0]).expand(8, 3))
    assert (plan.resolution[:, 0] == 1).all()
    assert (plan.resolution[:, 1:] < 1).all()


def test_outside_of_the_source_is_air_and_unlabelled():
    image = torch.full((1, 1, 16, 16, 16), 2.0)
    image[..., 0, 0, 0] = -7
    plan = sample_augmentation(image.shape, AugmentSettings(**OFF), seeded())
    shrunk = replace(plan, matrix=plan.matrix * 2)
    new_image, new_label = apply_augmentation(image, torch.ones(1, 16, 16, 16, dtype=torch.uint8), shrunk)
    assert new_image[0, 0, 0, 0, 0] == -7
    assert new_label[0, 0, 0, 0] == 0
    assert new_label[0, 8, 8, 8] == 1


def test_margin_around_the_patch_fills_the_corners():
    image = torch.ones(1, 1, 24, 24, 24)
    plan = sample_augmentation((1, 1, 12, 12, 12), AugmentSettings(**{**OFF, "p_spatial": 1}), seeded())
    new_image, new_label = apply_augmentation(image, image[:, 0].long(), plan)
    assert new_image.shape == (1, 1, 12, 12, 12)
    assert (new_label == 1).all()


def test_flips_only_along_the_named_axes():
    image, label = batch((64, 1, 2, 3, 4))
    plan = sample_augmentation(image.shape, AugmentSettings(**OFF, flip_axes=("W",)), seeded())
    new_image, new_label = apply_augmentation(image, label, plan)
    flipped = plan.flips[:, 2]
    assert 16 < flipped.sum() < 48
    assert not plan.flips[:, :2].any()
    assert torch.equal(new_image[flipped], image[flipped].flip(-1))
    assert torch.equal(new_label[flipped], label[flipped].flip(-1))
    assert torch.equal(new_image[~flipped], image[~flipped])


def test_intensity_transforms_keep_what_they_promise():
    image, label = batch((2, 1, 16, 16, 16))
    neutral = sample_augmentation(image.shape, AugmentSettings(**OFF), seeded())
    two = torch.tensor([1.2, 0.8])
    bright, _ = apply_augmentation(image, label, replace(neutral, brightness=two))
    assert torch.allclose(bright, image * two.view(2, 1, 1, 1, 1))
    strong, _ = apply_augmentation(image, label, replace(neutral, contrast=two))
    assert strong[0].max() == image[0].max()
    assert strong[1].std() < image[1].std()
    for inverted in (False, True):
        plan = replace(neutral, gamma=two, inverted=torch.tensor([inverted] * 2))
        bent, _ = apply_augmentation(image, label, plan)
        assert torch.allclose(bent.mean((1, 2, 3, 4)), image.mean((1, 2, 3, 4)), atol=1e-4)
        assert torch.allclose(bent.std((1, 2, 3, 4)), image.std((1, 2, 3, 4)), rtol=1e-3)
        assert (bent - image).abs().max() > 0.05
    noisy, _ = apply_augmentation(image, label, replace(neutral, noise=torch.tensor([0.0, 0.3])))
    assert torch.equal(noisy[0], image[0])
    assert (noisy[1] - image[1]).std().item() == pytest.approx(0.3 * image[1].std().item(), rel=0.05)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_constant_patches_stay_finite(value):
    image = torch.full((2, 1, 8, 8, 8), value)
    plan = sample_augmentation(image.shape, AugmentSettings(**ON), seeded())
    assert torch.isfinite(apply_augmentation(image, image[:, 0].long() * 0, plan)[0]).all()


BENT = AugmentSettings(**{**OFF, "p_elastic": 1.0})


def test_elastic_deformation_moves_label_and_image_alike_and_leaves_the_input():
    image = torch.zeros(4, 1, 32, 32, 32)
    image[:, :, 8:18, 10:24, 7:17] = 1
    kept = image.clone()
    plan = sample_augmentation(image.shape, BENT, seeded(3))
    new_image, new_label = apply_augmentation(image, image[:, 0].long(), plan)
    inside = new_image[:, 0] > 0.5
    assert 2 * (inside & (new_label == 1)).sum() / (inside.sum() + new_label.sum()) > 0.97
    assert (new_label != image[:, 0]).any()
    assert torch.equal(image, kept)
    assert torch.equal(new_image, apply_augmentation(image, image[:, 0].long(), plan)[0])


def test_equal_moves_of_all_control_points_shift_the_patch():
    image, label = batch((1, 1, 12, 12, 12))
    plan = sample_augmentation(image.shape, BENT, seeded(), spacing=(2, 1, 1))
    shift = torch.tensor([4.0, -1.0, 2.0]).expand_as(plan.displacements)  # mm
    new_image, new_label = apply_augmentation(image, label, replace(plan, displacements=shift))
    assert torch.allclose(new_image[..., :10, 1:, :10], image[..., 2:, :11, 2:], atol=1e-4)
    assert torch.equal(new_label[..., :10, 1:, :10], label[..., 2:, :11, 2:])


def test_elastic_deformation_never_folds():
    for seed in range(5):
        plan = sample_augmentation((2, 1, 20, 24, 28), BENT, seeded(seed), spacing=(2, 1, 1))
        field = displacement_field(plan.displacements.double(), plan.size, plan.spacing, plan.distance)
        gradient = torch.stack(torch.gradient(field, spacing=plan.spacing, dim=(1, 2, 3)), -1)
        assert torch.linalg.det(torch.eye(3) + gradient).min() > 0


def test_displacements_are_the_cubic_splines_of_scipy():
    field = displacement_field(torch.randn(1, 7, 7, 7, 3, generator=seeded()), (12, 12, 12), (1, 1, 1), 3.0)
    points = torch.randn(1, 7, 7, 7, 3, generator=seeded())[0, ..., 1].numpy()
    places = np.meshgrid(*[(np.arange(12) - 5.5) / 3 + 3] * 3, indexing="ij")
    expected = map_coordinates(points, places, order=3, prefilter=False, mode="constant")
    assert np.allclose(field[0, ..., 1], expected, atol=1e-5)


def test_thick_slices_are_bent_in_plane():
    plan = sample_augmentation((8, 1, 8, 8, 8), BENT, seeded(), spacing=(5, 1, 1))
    assert not plan.displacements[..., 0].any()
    assert plan.displacements[..., 1:].flatten(1).any(1).all()


def test_elastic_deformation_off_leaves_all_other_draws_as_they_were():
    shape = (2, 1, 8, 8, 8)
    with_it, without = (
        sample_augmentation(shape, AugmentSettings(**ON, p_elastic=p), seeded(1)) for p in (1.0, 0.0)
    )
    assert not without.displacements.any()
    for name in ("matrix", "flips", "blur", "noise_seed", "gamma", "inverted"):
        assert torch.equal(getattr(with_it, name), getattr(without, name))
