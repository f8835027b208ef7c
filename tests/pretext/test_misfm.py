"""Our own task: what is hidden, and positions up to one shift for each volume."""

import pytest
import torch

from misfm.models.unet import build_unet
from misfm.pretext.base import Placement
from misfm.pretext.misfm import MaskedPosition, positions
from misfm.seeding import generator_for

SIZE = (8, 12, 10)
TASK = MaskedPosition(block_size=(4, 4, 4))


def batch_of(task=TASK, volumes=2, seed=0, valid=None):
    patches = torch.randn(volumes, 2, 1, *SIZE, generator=generator_for(seed))
    inside = torch.tensor([[0, 0, 0], SIZE]) if valid is None else torch.tensor(valid)
    origin = 300 * torch.rand(volumes, 2, 3, generator=generator_for(seed, "origin"))
    spacing = torch.tensor([3.0, 1.0, 0.5]).expand(volumes, 2, 3)
    placement = Placement(inside.expand(volumes, 2, 2, 3), origin, spacing)
    return task.prepare(patches, placement, SIZE, generator_for(seed, "prepare")), patches, placement


def test_positions_are_millimetres_from_the_first_voxel_of_the_volume():
    placement = Placement(
        torch.zeros(1, 1, 2, 3), torch.tensor([[[10.0, 20, 30]]]), torch.tensor([[[3.0, 1, 0.5]]])
    )
    places = positions(placement, SIZE)
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
    outputs = torch.zeros(4, 4, *SIZE)
    noisy = torch.where(batch.real[:, None], outputs, torch.full_like(outputs, 1e4))
    for name, term in TASK.loss(outputs, batch).items():
        assert float(term) == pytest.approx(float(TASK.loss(noisy, batch)[name]), rel=1e-5)


def test_the_loss_of_one_batch_falls(overfit):
    torch.manual_seed(0)
    batch, _, _ = batch_of()
    model = TASK.build_model(build_unet(1, SIZE, channels=(8, 8)))
    losses = overfit(TASK, model, batch, steps=40)
    assert losses[-1] < 0.7 * losses[0]
    score = TASK.score(model(batch.inputs), batch)
    assert score["position_mm"] < score["position_mm_chance"]
