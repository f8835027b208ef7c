"""SimCLR: pairs of crops of nearly the same place."""

from dataclasses import replace

import pytest
import torch

from misfm.augment.crops import CropSettings
from misfm.errors import ConfigError
from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.simclr import SimCLR
from misfm.seeding import generator_for

PATCH_SIZE = (8, 12, 10)
NO_INTENSITIES = {
    f"p_{kind}": 0 for kind in ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")
}
STILL = CropSettings(p_flip=0, quarter_turns=False, intensities=NO_INTENSITIES)


def sources(task, batch_size=2, extent=None):
    """Voxels that tell where they are: 10000 b + 100 d + 10 h + w / 10."""
    size = task.source_size(PATCH_SIZE)
    d, h, w = (torch.arange(side, dtype=torch.float32) for side in size)
    place = 100 * d[:, None, None] + h[:, None] + w / 100
    patches = torch.stack([place + 10000 * index for index in range(batch_size)])[:, None, None]
    placement = Placement.whole(batch_size, 1, size)
    if extent is not None:
        placement = replace(placement, valid=torch.tensor(extent).expand(batch_size, 1, 2, 3))
    return patches, placement


def place_of(crop):
    first = float(crop[0, 0, 0, 0])
    return int(first // 10000), (int(first % 10000 // 100), int(first % 100 + 1e-3), round(first % 1 * 100))


def test_pairs_are_crops_of_one_volume_at_most_half_a_crop_apart():
    task = SimCLR(crops=STILL, num_pairs=3)
    assert task.source_size(PATCH_SIZE) == (24, 36, 10)
    patches, placement = sources(task)
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(0))
    assert batch.inputs.shape == (12, 1, *PATCH_SIZE)
    assert batch.targets.tolist() == [1, -1] * 6
    distances = []
    for index, step in enumerate(batch.targets.tolist()):
        volume, (d, h, w) = place_of(batch.inputs[index])
        other, start = place_of(batch.inputs[index + step])
        assert volume == other == index // 6
        whole = patches[volume, 0, :, d : d + 8, h : h + 12, w : w + 10]
        assert torch.equal(batch.inputs[index], whole)
        distances.append([abs(a - b) for a, b in zip((d, h, w), start, strict=True)])
    most = torch.tensor(distances).amax(0).tolist()
    assert most[0] <= 4
    assert most[1] <= 6
    assert most[2] == 0
    assert sum(most) > 0


def test_crops_stay_off_the_padding():
    task = SimCLR(crops=STILL)
    patches, placement = sources(task, extent=[[5, 4, 0], [17, 20, 10]])
    batch = task.prepare(patches, placement, PATCH_SIZE, generator_for(1))
    for crop in batch.inputs:
        _, (d, h, _) = place_of(crop)
        assert 5 <= d <= 17 - 8
        assert 4 <= h <= 20 - 12


def test_a_single_pair_is_refused():
    task = SimCLR(num_pairs=1)
    batch = task.prepare(*sources(task, batch_size=1), PATCH_SIZE, generator_for(0))
    with pytest.raises(ConfigError, match="batch_size"):
        task.loss(torch.ones(2, 3), batch)


def test_loss_falls_on_one_batch_and_partners_are_found(overfit):
    task = SimCLR(widths=(32, 32, 16))
    patches, placement = sources(task)
    noise = torch.randn(patches.shape, generator=generator_for(2))
    batch = task.prepare(noise, placement, PATCH_SIZE, generator_for(3))
    torch.manual_seed(0)
    model = task.build_model(build_unet(1, PATCH_SIZE, channels=(4, 8, 8)))
    losses = overfit(task, model, batch, steps=40, lr=3e-3)
    assert losses[-1] < 0.8 * losses[0]
    outputs = model(batch.inputs, *batch.context)
    score = task.score(outputs, batch)
    assert score["chance_accuracy"] == pytest.approx(1 / 7)
    assert score["matching_accuracy"] > 0.8
