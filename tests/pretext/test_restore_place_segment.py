"""Our own task: what is hidden, positions up to one shift for each volume, organs of generated ones."""

import pytest
import torch

from misfm.losses import IGNORE, segmentation_loss
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.restore_place_segment import RestorePlaceSegment, positions
from misfm.seeding import generator_for
from misfm.synthesis.structures import NUM_STRUCTURES

SIZE = (8, 12, 10)
TASK = RestorePlaceSegment(block_size=(4, 4, 4))
CHANNELS = 1 + 3 + NUM_STRUCTURES + 1


def batch_of(task=TASK, volumes=2, seed=0, valid=None, generated=0):
    """The last ``generated`` of the volumes have label maps."""
    patches = torch.randn(volumes, 2, 1, *SIZE, generator=generator_for(seed))
    inside = torch.tensor([[0, 0, 0], SIZE]) if valid is None else torch.tensor(valid)
    origin = 300 * torch.rand(volumes, 2, 3, generator=generator_for(seed, "origin"))
    spacing = torch.tensor([3.0, 1.0, 0.5]).expand(volumes, 2, 3)
    labels = torch.randint(6, (volumes, 2, *SIZE), generator=generator_for(seed, "labels"))
    labels[: volumes - generated] = IGNORE
    placement = Placement(inside.expand(volumes, 2, 2, 3), origin, spacing, labels if generated else None)
    return task.prepare(patches, placement, SIZE, generator_for(seed, "prepare")), patches, placement


def test_positions_are_millimetres_from_the_first_voxel_of_the_volume():
    placement = Placement(
        torch.zeros(1, 1, 2, 3), torch.tensor([[[10.0, 20, 30]]]), torch.tensor([[[3.0, 1, 0.5]]])
    )
    places = positions(placement, SIZE, torch.device("cpu"))
    assert places.shape == (1, 1, 3, *SIZE)
    assert places[0, 0, :, 2, 5, 4].tolist() == [16.0, 25.0, 32.0]


def test_hidden_voxels_are_zero_and_the_rest_is_as_it_was():
    batch, patches, _ = batch_of()
    hidden = batch.masked[:, None]
    assert 0 < float(hidden.float().mean()) < 1
    assert torch.equal(batch.inputs[hidden], torch.zeros(int(hidden.sum())))
    assert torch.equal(batch.inputs[~hidden], patches.flatten(0, 1)[~hidden])


def test_the_position_loss_is_the_mean_over_all_pairs_of_voxels():
    batch, _, _ = batch_of()
    guess = torch.randn(4, 3, *SIZE, generator=generator_for(3))
    total = 0.0
    for volume in range(2):
        pair = slice(2 * volume, 2 * volume + 2)
        f = guess[pair].transpose(0, 1).reshape(3, -1).double()
        g = batch.position[pair].transpose(0, 1).reshape(3, -1).double()
        # a random variable's variance is half the mean squared difference of two independent draws
        for axis in range(3):
            wrong = (f[axis][:, None] - f[axis][None]) - (g[axis][:, None] - g[axis][None])
            total += float(wrong.square().mean()) / 2
    assert float(TASK.position_error(guess, batch)) == pytest.approx(total / 6, rel=1e-4)


def test_a_shift_of_a_volume_costs_nothing_and_of_one_patch_it_does():
    batch, _, _ = batch_of()
    shift = torch.tensor([5.0, -2, 1]).view(1, 3, 1, 1, 1)
    assert float(TASK.position_error(batch.position + shift, batch)) == pytest.approx(0, abs=1e-5)
    one = batch.position.clone()
    one[0] += shift[0]
    assert float(TASK.position_error(one, batch)) > 1


def test_padding_counts_nowhere():
    batch, _, _ = batch_of(valid=[[2, 0, 0], [8, 12, 7]])
    outputs = torch.zeros(4, CHANNELS, *SIZE)
    noisy = torch.where(batch.real[:, None], outputs, torch.full_like(outputs, 1e4))
    for name, term in TASK.loss(outputs, batch).items():
        assert float(term) == pytest.approx(float(TASK.loss(noisy, batch)[name]), rel=1e-5)


def test_generated_volumes_are_varied_instead_of_masked_and_scans_have_no_classes():
    batch, patches, _ = batch_of(generated=1)
    assert (batch.labels[:2] == IGNORE).all()
    assert (batch.labels[2:] >= 0).all()
    assert batch.masked[:2].any()
    assert not batch.masked[2:].any()
    assert torch.equal(batch.targets, patches.flatten(0, 1))
    alone, _, _ = batch_of()
    assert torch.equal(batch.inputs[:2], alone.inputs[:2])


def test_the_segmentation_loss_is_that_of_the_generated_volumes_alone():
    batch, _, _ = batch_of(generated=1, valid=[[2, 0, 0], [8, 12, 7]])
    outputs = torch.randn(4, CHANNELS, *SIZE, generator=generator_for(5))
    terms = TASK.loss(outputs, batch)
    expected = segmentation_loss(outputs[2:, 4:], batch.labels[2:], balance=0.5)
    assert (batch.labels[2:, :2] == IGNORE).all()  # padding
    for name, term in expected.items():
        assert float(terms[name]) == pytest.approx(float(term), rel=1e-5)
    none = TASK.loss(outputs, batch_of()[0])
    assert [float(none[name]) for name in expected] == [0, 0]


def test_organs_that_are_predicted_right_score_a_dice_of_one():
    batch, _, _ = batch_of(generated=2)
    outputs = torch.zeros(4, CHANNELS, *SIZE)
    outputs[:, 4:].scatter_(1, batch.labels[:, None], 9.0)
    score = TASK.score(outputs, batch)
    assert score["pretext_dice"] == pytest.approx(1)
    assert score["chance_dice"] == pytest.approx(1 / 6, abs=0.01)
    assert "pretext_dice" not in TASK.score(outputs, batch_of()[0])


def test_the_loss_of_one_batch_falls(overfit):
    torch.manual_seed(0)
    batch, _, _ = batch_of()
    model = TASK.build_model(build_unet(1, SIZE, channels=(8, 8)))
    losses = overfit(TASK, model, batch, steps=40)
    assert losses[-1] < 0.7 * losses[0]
    score = TASK.score(model(batch.inputs), batch)
    assert score["position_mm"] < score["position_mm_chance"]


def test_the_loss_of_a_mixed_batch_falls(overfit):
    torch.manual_seed(0)
    batch, _, _ = batch_of(generated=1)
    losses = overfit(TASK, TASK.build_model(build_unet(1, SIZE, channels=(8, 8))), batch, steps=40)
    assert losses[-1] < 0.8 * losses[0]


def test_the_mean_to_beat_is_that_of_the_scans():
    batch, _, _ = batch_of(generated=1)
    batch.targets[2:] += 100.0
    outputs = torch.zeros(4, CHANNELS, *SIZE)
    visible = batch.targets[:2, 0][~batch.masked[:2]]
    expected = (visible.mean() - batch.targets[:, 0][batch.masked]).square().mean()
    assert TASK.score(outputs, batch)["mean_error"] == pytest.approx(float(expected), rel=1e-4)
