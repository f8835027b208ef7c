"""CarveMix: an organ and its surroundings arrive where they were, and nothing else changes."""

import itertools
from dataclasses import replace

import pytest
import torch

from misfm.augment.carvemix import CarveMixPlan, apply_carvemix, inside_volume, sample_carvemix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=6, seed=0):
    """Two patches of noise, each with two organs; a row of the first was not annotated."""
    image = torch.rand(2, 2, size, size, size, generator=seeded(seed))
    label = torch.zeros(2, size, size, size, dtype=torch.int64)
    label[0, 1:4, 1:5, 1:5], label[0, 4:, 4:, 2:] = 1, 3
    label[1, 2:5, 0:3, 2:5], label[1, :, 4, :2] = 2, 1
    label[0, :, 0, 0] = -1
    return image, label


def give(choice, margin, donor=(1, 0)):
    """A plan in which all get the same treatment."""
    return CarveMixPlan(torch.tensor(donor), torch.full((2,), choice), torch.full((2,), margin))


def signed_distance(region, spacing):
    """Distance of each voxel to the nearest on the other side, voxel by voxel; negative within the region."""
    places = list(itertools.product(*map(range, region.shape)))
    mm = torch.tensor(places, dtype=torch.float64) * torch.tensor(spacing, dtype=torch.float64)
    inside = region.flatten()
    apart = torch.cdist(mm, mm)
    distances = [apart[i][inside != inside[i]].min() * (-1 if inside[i] else 1) for i in range(len(mm))]
    return torch.tensor(distances).view(region.shape)


@pytest.mark.parametrize("margin", [-0.4, 0.0, 0.7])
@pytest.mark.parametrize("choice", [0.1, 0.9])
def test_same_as_a_loop_over_voxels(choice, margin):
    image, label = batch()
    spacing = (2.0, 1.0, 1.5)
    mixed_image, mixed_label = apply_carvemix(image, label, give(choice, margin), spacing)
    for receiver, donor in ((0, 1), (1, 0)):
        values = sorted(set(label[donor].flatten().tolist()) - {0, -1})
        distance = signed_distance(label[donor] == values[int(choice * len(values))], spacing)
        threshold = margin * -distance.min()
        pasted = 0
        for d, h, w in itertools.product(range(6), repeat=3):
            source = donor if distance[d, h, w] <= threshold + 1e-6 else receiver
            pasted += source == donor
            assert torch.equal(mixed_image[receiver, :, d, h, w], image[source, :, d, h, w])
            assert mixed_label[receiver, d, h, w] == label[source, d, h, w]
        assert 0 < pasted < 6**3


def test_voxels_not_annotated_stay_so_and_are_pasted_as_such():
    image, label = batch()
    _, mixed = apply_carvemix(image, label, give(0.0, 1.0), (1.0, 1.0, 1.0))
    assert (mixed[1] == -1).any()
    untouched = mixed[0] == label[0]
    assert (mixed[0][untouched & (label[0] == -1)] == -1).all()


def test_input_is_left_and_nothing_to_carve_changes_nothing():
    image, label = batch()
    kept = image.clone(), label.clone()
    apply_carvemix(image, label, give(0.5, 0.5), (1.0, 1.0, 1.0))
    assert torch.equal(image, kept[0])
    assert torch.equal(label, kept[1])
    for plan, labels in ((give(0.5, 0.5, donor=(0, 1)), label), (give(0.5, 0.5), label.clamp(max=0))):
        mixed_image, mixed_label = apply_carvemix(image, labels, plan, (1.0, 1.0, 1.0))
        assert torch.equal(mixed_image, image)
        assert torch.equal(mixed_label, labels)


def test_padding_is_neither_pasted_nor_pasted_over():
    image, label = batch()
    image[0, :, :2], image[1, :, :, :, 5:] = -1.0, -1.0
    label[0, :2], label[1, :, :, 5:] = 0, 0
    real = inside_volume(image)
    assert torch.equal(real[0], (image[0, 0] != -1))
    assert torch.equal(real[1], (image[1, 0] != -1))
    mixed_image, mixed_label = apply_carvemix(image, label, give(0.9, 1.0), (1.0, 1.0, 1.0))
    assert torch.equal(inside_volume(mixed_image), real)
    assert not mixed_label[~real].any()


def test_plans_follow_the_generator_and_the_probability():
    first, second = (sample_carvemix(64, 0.5, seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    receives = first.donor != torch.arange(64)
    assert 20 < receives.sum() < 44
    assert ((first.margin >= -0.5) & (first.margin < 1)).all()
    assert 20 < (first.margin < 0).sum() < 44
    for probability, batch_size in ((0.0, 8), (1.0, 1)):
        assert torch.equal(sample_carvemix(batch_size, probability, seeded()).donor, torch.arange(batch_size))
    assert (sample_carvemix(3, 1.0, seeded()).donor != torch.arange(3)).all()


def test_only_the_chosen_receive():
    image, label = batch()
    plan = replace(give(0.0, 0.5), donor=torch.tensor([0, 0]))
    mixed_image, mixed_label = apply_carvemix(image, label, plan, (1.0, 1.0, 1.0))
    assert torch.equal(mixed_image[0], image[0])
    assert torch.equal(mixed_label[0], label[0])
    assert not torch.equal(mixed_image[1], image[1])
