"""VoCo: overlaps of target crops with the tiles of a volume."""

import math
from dataclasses import replace

import pytest
import torch

from misfm.augment.crops import CropSettings
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.voco import Tiles, VoCo, split
from misfm.seeding import generator_for

PATCH_SIZE = (4, 6, 5)
NO_INTENSITIES = {
    f"p_{kind}": 0 for kind in ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
}
STILL = CropSettings(p_flip=0, quarter_turns=False, intensities=NO_INTENSITIES)


def sources(task, extents, patch_size=PATCH_SIZE):
    size = task.source_size(patch_size)
    patches = torch.randn(len(extents), 1, 1, *size, generator=generator_for(0))
    whole = Placement.whole(len(extents), 1, size)
    return patches, replace(whole, valid=torch.tensor(extents)[:, None])


def test_bases_tile_the_source_and_targets_know_their_overlap():
    task = VoCo(crops=STILL, num_targets=3)
    assert task.source_size(PATCH_SIZE) == (16, 24, 5)
    patches, placement = sources(task, [[[0, 0, 0], [16, 24, 5]]] * 2)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(1))
    assert batch.inputs.shape == (2 * 16 + 2 * 3, 1, *PATCH_SIZE)
    assert batch.targets.shape == (2, 3, 16)
    for volume in range(2):
        places = torch.arange(16 * 24 * 5).view(16, 24, 5)
        values = patches[volume].flatten()
        tiles = [places[d : d + 4, h : h + 6] for d in range(0, 16, 4) for h in range(0, 24, 6)]
        for index, tile in enumerate(tiles):
            assert torch.equal(batch.inputs[19 * volume + index].flatten(), values[tile.flatten()])
        for index in range(3):
            crop = batch.inputs[19 * volume + 16 + index].flatten()
            inside = [float(torch.isin(crop, values[tile.flatten()]).float().mean()) for tile in tiles]
            assert batch.targets[volume, index].tolist() == pytest.approx(inside)
            assert sum(inside) == pytest.approx(1)


def test_bases_without_a_real_voxel_are_neither_run_nor_counted():
    task = VoCo(crops=STILL, num_targets=2)
    extents = [[[5, 7, 1], [11, 17, 4]], [[0, 0, 0], [16, 24, 5]]]
    patches, placement = sources(task, extents)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(2))
    expected = [[d in (1, 2) and h in (1, 2) for d in range(4) for h in range(4)], [True] * 16]
    assert batch.real.tolist() == expected
    assert batch.inputs.shape[0] == 4 + 16 + 4
    assert torch.equal(batch.inputs[0, 0], patches[0, 0, 0, 4:8, 6:12])
    assert bool((batch.targets[0][:, ~batch.real[0]].sum() == 0).all())

    model = task.build_model(build_unet(1, PATCH_SIZE, channels=(4, 8)))
    vectors = model(batch.inputs)
    terms = task.loss(vectors, batch)
    padded = patches.clone()
    padded[0, ..., :4, :, :] = 1e6
    again = task.prepare(padded, placement, PATCH_SIZE, generator_for(2))
    assert torch.equal(batch.inputs, again.inputs)
    assert all(bool(term.isfinite()) for term in terms.values())


def test_bases_that_were_hidden_are_neither_run_nor_counted():
    task = VoCo(crops=STILL, num_targets=2)
    patches, placement = sources(task, [[[0, 0, 0], [16, 20, 5]]] * 2)
    hidden = torch.zeros(2, 1, 16, 24, 5, dtype=torch.bool)
    hidden[0, 0, :9, 12:] = True  # two rows of tiles, but a single line of the third
    batch = task.prepare(patches, replace(placement, hidden=hidden), PATCH_SIZE, generator_for(2))
    assert batch.real.tolist() == [[d > 1 or h < 2 for d in range(4) for h in range(4)], [True] * 16]
    assert len(batch.inputs) == 12 + 16 + 4


def random_batch(seed=3):
    """Three volumes of four bases, one of them with a single real one, and two targets each."""
    generator = generator_for(seed)
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    share = (
        torch.rand(3, 2, 4, generator=generator)
        * (torch.rand(3, 2, 4, generator=generator) < 0.6)
        * real[:, None]
    )
    share[:, :, 1] = 0.3
    vectors = torch.randn(int(real.sum()) + 6, 5, generator=generator) + 1
    return vectors, Tiles(torch.empty(0), share * real[:, None], real=real)


def test_the_loss_by_a_loop():
    vectors, batch = random_batch()
    rows = iter(vectors)
    bases, targets = [], []
    for volume in batch.real.tolist():
        bases.append([next(rows) if real else None for real in volume])
        targets.append([next(rows) for _ in range(2)])
    cosine = lambda a, b: max(0.0, float(torch.cosine_similarity(a, b, dim=0)))  # noqa: E731
    totals = {"overlap": 0.0, "elsewhere": 0.0, "bases_alike": 0.0}
    for volume in range(3):
        surprise, weight, squares, alike = 0.0, 0.0, [], []
        for index, target in enumerate(targets[volume]):
            for place, base in enumerate(bases[volume]):
                share = float(batch.targets[volume, index, place])
                if base is not None and share > 0:
                    surprise -= share * math.log(1 - abs(share - cosine(target, base)) + 1e-6)
                    weight += share
                elif base is not None:
                    squares.append(cosine(target, base) ** 2)
        real = [base for base in bases[volume] if base is not None]
        alike = [cosine(a, b) for i, a in enumerate(real) for b in real[i + 1 :]]
        totals["overlap"] += (surprise / weight if weight else 0) / 3
        totals["elsewhere"] += (sum(squares) / len(squares) if squares else 0) / 3
        totals["bases_alike"] += (sum(alike) / len(alike) if alike else 0) / 3
    terms = VoCo().loss(vectors, batch)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(totals, rel=1e-4, abs=1e-6)


def test_bases_are_constants_for_the_targets():
    vectors, batch = random_batch()
    vectors.requires_grad_()
    terms = VoCo().loss(vectors, batch)
    (terms["overlap"] + terms["elsewhere"]).backward()
    is_target = torch.tensor([place >= count for count in batch.real.sum(1) for place in range(count + 2)])
    assert float(vectors.grad[~is_target].abs().max()) == 0
    assert float(vectors.grad[is_target].abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_finite_where_similarity_is_entirely_wrong(dtype):
    batch = Tiles(torch.empty(0), torch.tensor([[[1.0, 0.0]]]), real=torch.tensor([[True, True]]))
    vectors = torch.tensor([[1.0, 0], [0, 1], [0, 1]], dtype=dtype, requires_grad=True)
    terms = VoCo().loss(vectors, batch)
    sum(terms.values()).backward()
    assert terms["overlap"].item() == pytest.approx(-math.log(1e-6), rel=1e-2)
    assert bool(vectors.grad.isfinite().all())


def test_score_is_perfect_for_the_truth_and_chance_for_guesses():
    generator = generator_for(4)
    task = VoCo(crops=STILL, num_targets=40)
    patches, placement = sources(task, [[[0, 0, 0], [16, 24, 5]], [[4, 0, 0], [12, 24, 5]]])
    batch = task.prepare(patches, placement, PATCH_SIZE, generator)
    bases = torch.eye(16)
    truth = torch.cat([bases, batch.targets[0], bases[batch.real[1]], batch.targets[1]])
    score = task.score(truth, batch)
    assert score["nearest_base_accuracy"] == 1
    best = (batch.targets == batch.targets.amax(-1, keepdim=True)).sum(-1).float().mean(1)  # ties count
    assert score["chance_accuracy"] == pytest.approx(float(best[0] / 16 + best[1] / 8) / 2)
    assert 1 / 16 < score["chance_accuracy"] < 1 / 5
    guesses = truth.clone()
    guesses[16:56] = torch.rand(40, 16, generator=generator)
    guesses[-40:] = torch.rand(40, 16, generator=generator)
    assert task.score(guesses, batch)["nearest_base_accuracy"] == pytest.approx(
        score["chance_accuracy"], abs=0.07
    )
    assert split(truth, batch)[0].shape == (2, 16, 16)


def test_loss_falls_on_one_batch(overfit):
    size = (8, 12, 10)
    task = VoCo(widths=(32, 32, 16), grid=(2, 2, 1), num_targets=2, crops=STILL)
    noise, placement = sources(task, [[[0, 0, 0], [16, 24, 10]]] * 2, size)
    patches = noise + torch.arange(16).view(-1, 1, 1) / 4 - torch.arange(24).view(-1, 1) / 3
    batch = task.prepare(patches, placement, size, generator_for(5))
    torch.manual_seed(0)
    model = task.build_model(build_unet(1, size, channels=(4, 8, 8)))
    losses = overfit(task, model, batch, steps=15)
    assert losses[-1] < 0.7 * losses[0]
