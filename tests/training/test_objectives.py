"""What is trained for: batches of labelled patches, mixed and augmented."""

import torch

from misfm.augment.labelled import AugmentSettings
from misfm.data.label_scheme import LabelScheme
from misfm.seeding import Draws
from misfm.training.objectives import SegmentationObjective

OFF = {
    f"p_{name}": 0.0
    for name in ("spatial", "noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
}


THREE = LabelScheme.numbered(3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def segmentation(scheme=THREE, **augmentation):
    return SegmentationObjective(
        AugmentSettings(**{**OFF, **augmentation}), (8, 8, 8), (1.0, 1.0, 1.0), scheme
    )


def test_carvemix_mixes_samples_and_what_was_annotated_in_them():
    label = torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    label[0, 2:6, 2:6, 2:6], label[1, 1:4, 1:7, 5:] = 1, 2
    annotated = torch.tensor([[True, True, False], [True, True, True]])
    image = torch.rand(2, 1, 8, 8, 8, generator=seeded()) + label[:, None]
    plain = segmentation().prepare((image, label, annotated), Draws((0,)))
    assert torch.equal(plain.inputs, image)
    assert torch.equal(plain.annotated, annotated)
    mixed = segmentation(p_carvemix=1.0).prepare((image, label, annotated), Draws((0,)))
    assert not torch.equal(mixed.targets, label)
    assert torch.equal(mixed.inputs[:, 0].floor().long(), mixed.targets)
    assert mixed.annotated.tolist() == [[True, True, False], [True, True, False]]
    assert segmentation(p_carvemix=1.0).prepare((image, label), Draws((0,))).annotated is None


def test_samples_that_share_no_annotated_class_are_not_mixed():
    image, label = torch.randn(2, 1, 8, 8, 8), torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    label[0, 2:6, 2:6, 2:6], label[1, 1:4] = 1, 2
    annotated = torch.tensor([[True, True, False], [True, False, True]])
    batch = segmentation(p_carvemix=1.0).prepare((image, label, annotated), Draws((0,)))
    assert torch.equal(batch.annotated, annotated)
    assert torch.equal(batch.inputs, image)


def test_regions_are_made_of_mixed_and_augmented_label_maps():
    scheme = LabelScheme(values={"whole": (1, 2), "core": (2,)}, order=(1, 2))
    label = torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    label[0, 2:6, 2:6, 2:6], label[1, 1:4, 1:7, 5:] = 1, 2
    image = torch.rand(2, 1, 8, 8, 8, generator=seeded()) + label[:, None]
    objective = segmentation(scheme, p_carvemix=1.0)
    annotated = torch.tensor([[True, False], [True, True]])
    batch = objective.prepare((image, label, annotated), Draws((0,)))
    assert torch.equal(batch.inputs[:, 0].floor().long(), batch.targets)  # pasted values, not regions
    assert batch.annotated.tolist() == [[True, False], [True, False]]
    logits = torch.where(torch.stack([batch.targets > 0, batch.targets == 2], 1), 20.0, -20.0)
    assert sum(objective.loss(logits, batch).values()) < 1e-3
    assert objective.score(logits, batch) == {"train_dice": 1.0}
