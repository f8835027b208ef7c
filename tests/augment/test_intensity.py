"""Intensity augmentation on its own: drawing, applying, and the smoothing it is made of."""

from dataclasses import fields

import torch

from misfm.augment.intensity import (
    IntensitySettings,
    apply_intensities,
    sample_intensities,
    sample_resolution,
    smoothing_matrix,
)

KINDS = ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
ON = IntensitySettings(**{f"p_{kind}": 1.0 for kind in KINDS})
OFF = IntensitySettings(**{f"p_{kind}": 0.0 for kind in KINDS})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_off_returns_equal_but_fresh_voxels():
    image = torch.randn(3, 2, 6, 7, 8, generator=seeded())
    varied = apply_intensities(image, sample_intensities(3, OFF, seeded()))
    assert torch.equal(varied, image)
    assert varied.data_ptr() != image.data_ptr()


def test_all_on_changes_every_patch_and_leaves_the_input_alone():
    image = torch.randn(3, 2, 6, 7, 8, generator=seeded())
    before = image.clone()
    plan = sample_intensities(3, ON, seeded(1))
    varied = apply_intensities(image, plan)
    assert torch.equal(image, before)
    assert torch.equal(varied, apply_intensities(image, plan))
    assert bool(varied.isfinite().all())
    assert float((varied - image).abs().amax((1, 2, 3, 4)).min()) > 0.01


def test_the_generator_decides_the_plan():
    def plan(seed):
        return vars(sample_intensities(4, ON, seeded(seed)))

    assert all(torch.equal(plan(1)[name], plan(1)[name]) for name in plan(1))
    assert not torch.equal(plan(1)["noise_seed"], plan(2)["noise_seed"])


def test_resolution_may_be_drawn_ahead():
    generator = seeded(2)
    ahead = sample_intensities(4, ON, generator, resolution=sample_resolution(4, ON, generator))
    at_once = sample_intensities(4, ON, seeded(2))
    assert all(torch.equal(getattr(ahead, f.name), getattr(at_once, f.name)) for f in fields(ahead))


def test_smoothing_matrix_keeps_constants_and_reduces_detail():
    for sigma, resolution in ((0, 1), (0.8, 1), (0, 0.5), (1, 0.6)):
        matrix = smoothing_matrix(17, sigma, resolution)
        assert torch.allclose(matrix.sum(1), torch.ones(17), atol=1e-6)
    assert torch.equal(smoothing_matrix(5, 0, 1), torch.eye(5))
    line = torch.tensor([0.0, 0, 4, 0, 0])
    by_hand = torch.tensor([-2.0, -1, 0, 1, 2]).square().mul(-0.5).exp()
    assert torch.allclose((smoothing_matrix(5, 1, 1) @ line)[2], 4 / by_hand.sum())
