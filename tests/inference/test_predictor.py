"""Label maps lie on the scan they belong to, whatever its orientation, spacing and tilt."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import nn

from misfm.data.intensity import IntensityRule
from misfm.data.preprocess import canonical
from misfm.errors import DataError
from misfm.inference.precision import Computing
from misfm.inference.predictor import PredictionSpec, Predictor
from misfm.volume import Volume

CT = IntensityRule(kind="ct")


class Threshold(nn.Module):
    """Calls label 1 what is brighter than 0 HU, and remembers the windows it saw."""

    def __init__(self):
        super().__init__()
        self.shapes, self.range = set(), (0.0, 0.0)

    def forward(self, x):
        self.shapes.add(tuple(x.shape))
        self.range = (min(self.range[0], x.min().item()), max(self.range[1], x.max().item()))
        return [torch.cat([-10 * x[:, :1], 10 * x[:, :1]], dim=1)]


def scan():
    """An L-shaped bright object, off centre, in a body of -200 HU, in air."""
    voxels = np.full((1, 18, 22, 26), -1000, np.int16)
    voxels[:, 2:16, 3:20, 3:24] = -200
    voxels[:, 4:7, 5:16, 6:9] = 700
    voxels[:, 4:7, 12:16, 9:19] = 700
    affine = np.diag([-3.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = (12, -40, 7)
    return Volume(voxels, affine)


def reordered(volume, order, flips):
    """The same voxels at the same places, stored along other axes."""
    data, affine = volume.data, volume.affine.copy()
    for axis in flips:
        data = np.flip(data, axis + 1)
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    return Volume(data.transpose(0, *(axis + 1 for axis in order)), affine[:, [*order, 3]])


def tilted(volume):
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    other = np.eye(4)
    other[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return Volume(volume.data, turn @ other @ volume.affine)


def predictor(**changes):
    spec = {"patch_size": (8, 8, 8), "rules": [CT], "num_classes": 2}
    return Predictor(Threshold(), PredictionSpec(**{**spec, **changes}), computing=Computing(batch_size=4))


FLIPS = [tuple(axis for axis in range(3) if chosen[axis]) for chosen in product((0, 1), repeat=3)]


@pytest.mark.parametrize("order", permutations(range(3)))
@pytest.mark.parametrize("place", [lambda volume: volume, tilted], ids=["straight", "oblique"])
def test_mask_overlays_the_object_in_all_48_orientations(order, place):
    for flips in FLIPS:
        volume = reordered(place(scan()), order, flips)
        mask = predictor(patch_size=(12, 14, 16)).predict(volume)
        assert mask.data.dtype == np.uint8
        assert np.array_equal(mask.affine, volume.affine)
        assert np.array_equal(mask.data, (volume.data > 0).astype(np.uint8))


def ball(shape, spacing):
    """A ball of 15 mm radius at a place that is no multiple of any spacing."""
    affine = np.diag([spacing[0], -spacing[1], -spacing[2], 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = (11.3, 5.9, -30.1)
    index = np.indices(shape).reshape(3, -1)
    place = (affine[:3, :3] @ index).T + affine[:3, 3]
    middle = affine[:3, :3] @ (np.array(shape) / 2.2) + affine[:3, 3]
    distance = np.linalg.norm(place - middle, axis=1).reshape(shape)
    return Volume((1000 * np.clip((15 - distance) / 4, -0.6, 1))[None].astype(np.float64), affine)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.3, 2.7, 1.9), (5.0, 1.0, 1.0)])
@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_other_spacing_of_the_network_moves_nothing(spacing, flips):
    volume = reordered(ball((24, 40, 44), (2.5, 1.4, 1.2)), (1, 2, 0), flips)
    mask = predictor(spacing=spacing).predict(volume)
    truth = volume.data > 0
    assert np.array_equal(mask.affine, volume.affine)
    assert 2 * (truth & (mask.data == 1)).sum() / (truth.sum() + mask.data.sum()) > 0.95
    centres = [np.argwhere(voxels).mean(0) for voxels in (truth, mask.data)]
    assert np.abs(centres[0] - centres[1]).max() < 0.15


def test_streamed_interpolation_equals_interpolating_everything(monkeypatch):
    """Slab by slab, and with any number of slices at a time, the same labels come out."""
    volume = ball((30, 30, 30), (1.7, 1.1, 1.1))
    small = predictor(spacing=(2.3, 1.6, 1.6), patch_size=(4, 16, 16)).predict(volume)
    monkeypatch.setattr("misfm.inference.grid._MAX_VALUES", 1)
    assert np.array_equal(
        small.data, predictor(spacing=(2.3, 1.6, 1.6), patch_size=(4, 16, 16)).predict(volume).data
    )
    whole = predictor(spacing=(2.3, 1.6, 1.6), patch_size=(64, 64, 64)).predict(volume)
    assert (small.data != whole.data).mean() < 1e-3


def test_probabilities_make_up_the_box_around_the_patient_and_their_largest_is_the_label():
    for spacing in (None, (2.3, 1.6, 1.6)):
        asked, volume = predictor(spacing=spacing), tilted(scan())
        found = asked.probabilities(volume)
        slabs = list(found.slabs)
        assert [start for start, _ in slabs] == list(
            np.cumsum([0, *(slab.shape[1] for _, slab in slabs[:-1])])
        )
        whole = torch.cat([slab for _, slab in slabs], dim=1)
        assert whole.shape == (2, *found.box.size)
        assert whole.sum(0).allclose(torch.ones(found.box.size), atol=1e-5)
        labels = canonical(asked.predict(volume)).data[0]
        assert np.array_equal(labels[found.box.slices], whole.argmax(0).numpy())
        assert labels.sum() == labels[found.box.slices].sum()


@pytest.mark.parametrize("spacing", [None, (4.0, 3.0, 3.0)])
def test_progress_within_a_scan_rises_to_one(spacing):
    shares = []
    asked = Predictor(
        Threshold(),
        PredictionSpec(patch_size=(8, 8, 8), rules=(CT,), num_classes=2, spacing=spacing),
        computing=Computing(batch_size=4),
        mirror_axes=(0, 2),
    )
    asked.predict(scan(), progress=shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-2] < shares[-1] == 1


def test_windows_have_the_patch_size_and_normalised_intensities():
    by_window = predictor()
    by_window.predict(scan())
    assert {shape[1:] for shape in by_window.network.shapes} == {(1, 8, 8, 8)}
    assert by_window.network.range == pytest.approx((-1, 0.7))


def test_scan_smaller_than_a_window_and_voxels_of_other_types():
    volume = scan()
    mask = predictor(patch_size=(40, 40, 40)).predict(Volume(volume.data.astype(np.int32), volume.affine))
    assert np.array_equal(mask.data, (volume.data > 0).astype(np.uint8))


def test_mr_is_normalised_over_the_whole_scan():
    """Intensity scales of MR mean nothing: the same scan times ten gives the same labels."""
    voxels = np.random.default_rng(0).normal(100, 20, (1, 12, 14, 16)).astype(np.float32)
    affine = np.eye(4)
    masks = [
        predictor(rules=[IntensityRule(kind="mr")]).predict(Volume(voxels * scale, affine)).data
        for scale in (1, 10)
    ]
    assert 0.3 < masks[0].mean() < 0.7
    assert (masks[0] != masks[1]).mean() < 1e-3


def test_weights_whose_labels_lay_apart_from_the_patient_have_whole_scans_labelled():
    voxels = np.full((1, 12, 12, 48), -1000, np.int16)
    voxels[..., :12] = 40
    voxels[..., 47] = 700
    volume = Volume(voxels, np.diag([2.0, 2, 2, 1]))
    assert not predictor().predict(volume).data[..., 47].any()
    assert predictor(whole_scans=True).predict(volume).data[..., 47].all()


def test_a_plain_part_that_the_clean_up_removes_is_told():
    voxels = np.full((1, 12, 12, 40), -1000, np.int16)
    voxels[..., 2:38] = 40 - 1000
    voxels[:, 3:9, 3:9, 4:10] = 700
    voxels[:, 3:9, 3:9, 30:34] = 700
    volume, notes = Volume(voxels, np.diag([2.0, 2, 2, 1])), []
    asked = predictor(whole_scans=True)
    assert asked.predict(volume, notes=notes).data[..., 31].any()
    assert notes == []
    asked.largest_part = (1,)
    assert not asked.predict(volume, notes=notes).data[..., 31].any()
    (said,) = notes
    assert "a part was removed that has 67% of the size" in said


def test_empty_scan_is_background():
    air = Volume(np.full((1, 9, 9, 9), -1000, np.int16), np.eye(4))
    assert not predictor().predict(air).data.any()


def test_wrong_number_of_channels_is_a_data_error():
    two = Volume(np.zeros((2, 9, 9, 9), np.int16), np.eye(4))
    with pytest.raises(DataError, match=r"2 channel\(s\) and the network takes 1"):
        predictor().predict(two)
