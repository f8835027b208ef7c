"""vox2vec: voxels seen in two crops of a volume."""

from dataclasses import replace

import pytest
import torch

from misfm.augment.crops import sample_start
from misfm.models import create
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.vox2vec import Vox2Vec, common_box, gather
from misfm.seeding import generator_for

PATCH_SIZE = (8, 12, 10)
PLAIN = {f"p_{kind}": 0 for kind in ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")}


def sources(task, batch_size=2, extent=None):
    size = task.source_size(PATCH_SIZE)
    patches = torch.randn(batch_size, 1, 1, *size, generator=generator_for(0))
    placement = Placement.whole(batch_size, 1, size)
    if extent is not None:
        placement = replace(placement, valid=torch.tensor(extent).expand(batch_size, 1, 2, 3))
    return patches, placement


def values_at(batch):
    (voxels,) = batch.context
    return [float(batch.inputs[b, 0, d, h, w]) for b, d, h, w in voxels.tolist()]


def test_partners_are_the_same_voxel_of_the_same_volume():
    task = Vox2Vec(intensities=PLAIN, num_voxels=50)
    assert task.source_size(PATCH_SIZE) == (12, 18, 15)
    patches, placement = sources(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(1))
    assert batch.inputs.shape == (4, 1, *PATCH_SIZE)
    values = values_at(batch)  # each value occurs once in all volumes
    half = len(values) // 2
    assert values[::2] == values[1::2]
    assert len(set(values)) == half
    assert batch.targets.tolist() == [1, -1] * half
    crops = batch.context[0][:, 0]
    assert torch.equal(crops[::2] + 1, crops[1::2])
    assert set(crops.tolist()) == {0, 1, 2, 3}
    assert 80 < half <= 100
    assert not torch.equal(batch.inputs[::2], batch.inputs[1::2])


def test_crops_of_the_largest_source_still_share_a_voxel():
    task = Vox2Vec(intensities=PLAIN, source_scale=2, num_voxels=8)
    size = task.source_size((3, 3, 3))
    patches = torch.randn(1, 1, 1, *size, generator=generator_for(0))
    placement = Placement.whole(1, 1, size)
    extent = placement.valid[0, 0].tolist()
    for seed in range(40):
        starts = [sample_start((3, 3, 3), size, extent, generator_for(seed, i)) for i in (0, 1)]
        low, high = common_box(starts, (3, 3, 3), extent)
        assert all(a < b for a, b in zip(low, high, strict=True))
    assert patches.shape[-3:] == placement.real(size).shape[-3:] == (5, 5, 5)


def test_padding_and_clipped_air_are_not_drawn():
    task = Vox2Vec(intensities=PLAIN)
    patches, placement = sources(task, extent=[[0, 3, 0], [12, 9, 15]])
    patches[..., :3, :] = patches[..., 9:, :] = 100
    patches[..., 6:, :, :].clamp_(min=0.5)
    patches[..., 6:, 3:5, :] = -9
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(2))
    values = values_at(batch)
    assert 100 not in values
    assert -9 not in values
    assert max(values) < 10


def test_hidden_voxels_are_drawn_only_if_there_are_no_others():
    task = Vox2Vec(intensities=PLAIN)
    patches, placement = sources(task)
    hidden = torch.zeros(2, 1, *patches.shape[3:], dtype=torch.bool)
    hidden[..., 8:] = True
    patches[..., 8:] = -100  # what is left is brighter, yet its darkest voxel is air
    batch = task.prepare(patches, replace(placement, hidden=hidden), PATCH_SIZE, generator_for(2))
    assert -100 not in values_at(batch)
    air = float(patches[0, ..., :8].min())
    assert air not in values_at(batch)
    batch = task.prepare(
        patches, replace(placement, hidden=torch.ones_like(hidden)), PATCH_SIZE, generator_for(2)
    )
    assert -100 in values_at(batch)


def test_vectors_are_gathered_from_all_levels():
    pyramid = [torch.randn(2, 3, 8, 12, 8), torch.randn(2, 5, 4, 6, 8), torch.randn(2, 2, 2, 3, 4)]
    voxels = torch.tensor([[0, 7, 11, 7], [1, 3, 4, 5], [1, 0, 0, 0]])
    expected = [
        torch.cat(
            [
                pyramid[0][b, :, d, h, w],
                pyramid[1][b, :, d // 2, h // 2, w],
                pyramid[2][b, :, d // 4, h // 4, w // 2],
            ]
        )
        for b, d, h, w in voxels.tolist()
    ]
    assert torch.equal(gather(pyramid, voxels, torch.Size((8, 12, 8))), torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("unet", (13, 16, 9), {"channels": (4, 8, 8)}),
        (
            "pctnet",
            (32, 32, 32),
            {"channels": (4, 8, 8, 16, 16), "num_heads": (2, 2, 2), "window_sizes": (2, 2, 2)},
        ),
    ],
)
def test_networks_of_any_pyramid_fit(name, size, options):
    backbone = create(name, num_classes=2, patch_size=size, **options).backbone
    model = Vox2Vec(embedding_channels=6).build_model(backbone)
    last = torch.tensor([[1, *(side - 1 for side in size)]])
    assert model(torch.randn(2, 1, *size), last).shape == (1, 6)


def test_loss_falls_on_one_batch_and_voxels_are_found(overfit):
    task = Vox2Vec(num_voxels=40, embedding_channels=16)
    patches, placement = sources(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(4))
    torch.manual_seed(0)
    model = task.build_model(build_unet(1, PATCH_SIZE, channels=(8, 16, 16)))
    losses = overfit(task, model, batch, steps=25)
    assert losses[-1] < 0.6 * losses[0]
    outputs = model(batch.inputs, *batch.context)
    score = task.score(outputs, batch)
    assert score["chance_accuracy"] == pytest.approx(1 / (len(outputs) - 1))
    assert score["matching_accuracy"] > 10 * score["chance_accuracy"]
