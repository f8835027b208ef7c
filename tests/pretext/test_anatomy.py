"""Generated anatomy is segmented whatever the contrast of its structures."""

from dataclasses import replace

import pytest
import torch

from misfm.augment.intensity import IntensitySettings
from misfm.losses import IGNORE
from misfm.pretext import Placement
from misfm.pretext.anatomy import PhantomAnatomy
from misfm.seeding import generator_for
from misfm.synthesis.appearance import soften
from misfm.synthesis.structures import NUM_STRUCTURES

SIZE = (12, 12, 16)
AS_THEY_ARE = IntensitySettings(
    p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0
)
BLOCKS = torch.randint(0, NUM_STRUCTURES + 1, (3, 1, 3, 3, 4), generator=generator_for("labels"))
LABELS = BLOCKS.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
INSIDE = torch.zeros(SIZE, dtype=torch.bool)  # of the blocks, a voxel or more from their borders
INSIDE[(torch.arange(12) % 4 % 3 > 0).outer(torch.arange(12) % 4 % 3 > 0)] = torch.arange(16) % 4 % 3 > 0
PATCHES = torch.randn(3, 1, 1, *SIZE, generator=generator_for("patches"))


def batch(share, depth=SIZE[0]):
    """The task's batch of three patches, the last planes of which are padding."""
    valid = torch.tensor([[0, 0, 0], [depth, *SIZE[1:]]]).expand(3, 1, 2, 3)
    placement = replace(Placement.whole(3, 1, SIZE), valid=valid, labels=LABELS)
    task = PhantomAnatomy(p_recolour=share, recolour=0.2, intensities=AS_THEY_ARE)
    return task.prepare(PATCHES, placement, SIZE, generator_for("draws"))


def test_each_structure_becomes_lighter_or_darker_as_a_whole():
    recoloured = batch(1.0)
    change = (recoloured.inputs - PATCHES[:, 0])[:, 0]
    shifts = []
    for own, labels in zip(change, LABELS[:, 0], strict=True):
        for value in labels.unique():
            inside = own[(labels == value) & INSIDE]
            assert torch.allclose(inside, inside[0], atol=1e-6)
            shifts.append(inside[0])
    assert len({round(float(shift), 5) for shift in shifts}) > 60  # of 3 patches x 36 blocks
    assert torch.stack(shifts).std() == pytest.approx(0.2, rel=0.3)
    assert torch.equal(recoloured.targets, LABELS[:, 0])


def test_a_border_between_structures_is_a_partial_volume():
    two = torch.zeros(1, 4, 4, 8)
    two[..., 4:] = 1
    assert soften(two)[0, 2, 2].tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]


def test_padding_keeps_its_value_and_counts_in_no_loss():
    recoloured = batch(1.0, depth=8)
    assert torch.equal(recoloured.inputs[:, :, 8:], PATCHES[:, 0, :, 8:])
    assert (recoloured.targets[:, 8:] == IGNORE).all()
    assert (recoloured.targets[:, :8] != IGNORE).all()


def test_no_patch_is_recoloured_where_none_should_be():
    assert torch.equal(batch(0.0).inputs, PATCHES[:, 0])
