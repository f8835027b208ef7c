"""Images drawn for label maps: one intensity a structure, soft borders, any contrast."""

from dataclasses import replace

import pytest
import torch

from misfm.seeding import generator_for
from misfm.synthesis.appearance import AppearanceSettings, apply_appearance, sample_appearance
from misfm.synthesis.label_table import FIRST, LabelTable

TABLE = LabelTable.of([0, 1, 2, 3, 8], {1: "left kidney", 2: "right kidney", 3: "bone"})
BACKGROUND, LEFT, RIGHT, BONE, AROUND = range(FIRST, FIRST + 5)
PLAIN = AppearanceSettings(p_ct=0, p_stripped=0, p_dark=0, noise=0, bias=0, p_thick=0)
LABELS = torch.full((1, 12, 12, 30), BACKGROUND)
for place, value in enumerate((LEFT, RIGHT, BONE, AROUND)):
    LABELS[..., 6 * place : 6 * place + 6] = value
REAL = torch.ones(LABELS.shape, dtype=torch.bool)


def draw(seed, **changes):
    settings = PLAIN.model_copy(update=changes)
    return sample_appearance(LABELS.shape, TABLE, settings, generator_for("look", seed))


def test_a_structure_has_one_intensity_and_both_sides_the_same():
    image = apply_appearance(LABELS, REAL, draw(0))
    assert image.shape == (1, 1, *LABELS.shape[1:])
    inside = [image[..., 6 * place + 1 : 6 * place + 5] for place in range(4)]
    assert all(torch.allclose(part, part.mean(), atol=1e-5) for part in inside)
    left, right, bone, around = (float(part.mean()) for part in inside)
    assert left == pytest.approx(right, abs=1e-5)
    assert abs(bone - left) > 0.05 < abs(around - bone)


def test_borders_are_partial_volumes():
    line = apply_appearance(LABELS, REAL, draw(0))[0, 0, 5, 5]
    lower, upper = sorted((float(line[14]), float(line[21])))
    assert lower < float(line[17]) < upper
    assert lower < float(line[18]) < upper


def test_contrast_is_another_one_each_time_and_the_same_for_the_same_seed():
    means = torch.stack([draw(seed).means[0] for seed in range(40)])
    assert means.std(0)[LEFT:].min() > 0.3
    assert torch.equal(draw(3).means, draw(3).means)


def test_images_are_normalised_as_mr_or_lie_in_the_window_of_ct():
    mr = apply_appearance(LABELS, REAL, draw(1, noise=0.2, bias=0.3))
    assert float(mr.mean()) == pytest.approx(0, abs=0.05)
    assert float(mr.std()) == pytest.approx(1, abs=0.05)
    ct = apply_appearance(LABELS, REAL, draw(1, p_ct=1, noise=0.2))
    assert -1 <= float(ct.min()) < float(ct.max()) <= 1
    assert float(ct[..., 13:17].mean()) > float(ct[..., 1:5].mean()) + 0.5  # bone and kidney
    assert float(ct[..., 25:].mean()) < -0.8  # air


def test_without_a_skull_nothing_is_seen_around_what_is_segmented():
    image = apply_appearance(LABELS, REAL, draw(2, p_stripped=1))
    assert torch.allclose(image[..., 20:23], image[..., 27:30].mean(), atol=1e-4)


def test_what_lies_outside_has_the_lowest_value():
    real = REAL.clone()
    real[..., 24:] = False
    image = apply_appearance(LABELS, real, draw(4, noise=0.3))
    assert (image[..., 24:] == image[..., :24].min()).all()


def test_thick_slices_lie_along_one_axis():
    plan = draw(5, p_thick=1)
    assert sorted(plan.resolution[0].tolist())[1:] == [1, 1]
    assert 0.25 <= float(plan.resolution.min()) <= 0.8


def test_drawing_follows_the_plan_alone():
    plan = draw(6, noise=0.2)
    assert torch.equal(apply_appearance(LABELS, REAL, plan), apply_appearance(LABELS, REAL, plan))
    other = replace(plan, means=plan.means + 0.1 * torch.rand_like(plan.means))
    assert not torch.equal(apply_appearance(LABELS, REAL, plan), apply_appearance(LABELS, REAL, other))
