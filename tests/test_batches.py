"""Batches: where patches lie, and how raw ones pass through data loaders and to devices."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Dataset

from misfm.batches import RawPatches
from misfm.pretext import Placement

SIZE = (4, 3, 5)


class Raw(Dataset):
    def __getitem__(self, index):
        whole = Placement.whole(2, 1, SIZE)
        hidden = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
        patches = torch.full((2, 1, 1, *SIZE), float(index))
        return RawPatches(patches, whole.valid, whole.origin, whole.spacing, hidden=hidden)


def test_placement_tells_voxels_from_padding():
    valid = torch.tensor([[[[2, 0, 1], [4, 3, 5]]]])
    placement = replace(Placement.whole(1, 1, (5, 3, 5)), valid=valid)
    mask = placement.real((5, 3, 5))
    assert mask.shape == (1, 1, 5, 3, 5)
    assert int(mask.sum()) == 2 * 3 * 4
    assert bool(mask[0, 0, 2:4, 0:3, 1:5].all())
    hidden = torch.zeros(1, 1, 5, 3, 5, dtype=torch.bool)
    hidden[..., 3:] = True
    assert torch.equal(replace(placement, hidden=hidden).real((5, 3, 5)), mask & ~hidden)


@pytest.mark.parametrize("spacing", [1.0, 0.5, (3.0, 1.0, 0.5)])
def test_whole_patches_are_real_throughout(spacing):
    placement = Placement.whole(2, 3, SIZE, spacing)
    assert placement.valid.dtype == torch.int64
    assert placement.origin.dtype == placement.spacing.dtype == torch.float32
    assert placement.real(SIZE).shape == (2, 3, *SIZE)
    assert bool(placement.real(SIZE).all())
    assert placement.origin.tolist() == [[[0, 0, 0]] * 3] * 2
    each = list(spacing) if isinstance(spacing, tuple) else [spacing] * 3
    assert placement.spacing.tolist() == [[each] * 3] * 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_raw_patches_stay_what_they_are_on_the_way_to_a_device(num_workers):
    loader = DataLoader(Raw(), batch_size=None, sampler=range(3), num_workers=num_workers)
    for index, raw in enumerate(loader):
        moved = move_data_to_device(raw, torch.device("cpu"))
        assert isinstance(raw, RawPatches)
        assert isinstance(moved, RawPatches)
        assert moved.labels is None
        assert bool((moved.patches == index).all())
        assert torch.equal(moved.hidden, torch.zeros(2, 1, *SIZE, dtype=torch.bool))


def test_the_placement_of_raw_patches_is_theirs():
    raw = Raw()[0]
    placement = raw.placement
    assert placement.labels is None
    for name in ("valid", "origin", "spacing", "hidden"):
        assert torch.equal(getattr(placement, name), getattr(raw, name))
