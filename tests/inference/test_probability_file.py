"""Probabilities lie on the scan's own grid, sum to one, and are those the label map was decided by."""

import numpy as np
import pytest
import torch
from torch import nn

from misfm.data.intensity import IntensityRule
from misfm.data.label_scheme import LabelScheme
from misfm.errors import DataError
from misfm.inference.predictor import PredictionSpec, Predictor
from misfm.inference.probability_file import probability_file
from misfm.volume import Volume


class Bright(nn.Module):
    """The brighter, the surer of the last output."""

    def __init__(self, num_outputs):
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, x):
        return torch.cat([0 * x[:, :1]] * (self.num_outputs - 1) + [5 * x[:, :1]], dim=1)


def scan():
    voxels = np.full((1, 14, 30, 40), -1000, np.int16)
    voxels[:, 2:12, 4:20, 5:21] = 500
    voxels[:, 5:8, 6:10, 7:19] = -300
    affine = np.array([[0, -2.0, 0, 12], [0, 0, 1.5, -7], [-3.0, 0, 0, 5], [0, 0, 0, 1]])
    return Volume(voxels, affine)


def saved(path, *, spacing=None, scheme=None):
    spec = PredictionSpec(
        patch_size=(8, 8, 8),
        rules=(IntensityRule(kind="ct"),),
        num_classes=2 if scheme is None else scheme.num_outputs,
        spacing=spacing,
        scheme=scheme,
    )
    predictor = Predictor(Bright(spec.num_classes), spec)
    with probability_file(path, scan()) as file:
        label_map = predictor.predict(scan(), watchers=[file])
    with np.load(path, allow_pickle=False) as content:
        assert content.files == ["probabilities"]
        return label_map, content["probabilities"]


@pytest.mark.parametrize("spacing", [None, (2.5, 2.5, 2.5)])
def test_the_most_probable_class_is_the_label(tmp_path, spacing):
    label_map, probabilities = saved(tmp_path / "case.npz", spacing=spacing)
    assert probabilities.shape == (2, *scan().shape)
    assert probabilities.dtype == np.float16
    assert probabilities.astype(np.float32).sum(0) == pytest.approx(np.ones(scan().shape), abs=2e-3)
    # A tie in float16 is none in float32.
    sure = np.abs(probabilities[1].astype(float) - 0.5) > 1e-3
    assert np.array_equal((probabilities.argmax(0) == 1)[sure], (label_map.data[0] == 1)[sure])
    assert label_map.data.any()
    assert (probabilities[0, :, -1, -1] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["case.npz"]


def test_each_region_has_a_probability_of_its_own(tmp_path):
    scheme = LabelScheme(values={"whole": (1, 2), "core": (2,)}, order=(1, 2))
    _, probabilities = saved(tmp_path / "case.npz", scheme=scheme)
    assert probabilities.shape == (2, *scan().shape)
    assert (probabilities[:, :, -1, -1] == 0).all()
    assert probabilities[0].max() == 0.5
    assert probabilities[1].max() > 0.9


def test_nothing_is_left_of_what_fails(tmp_path):
    def fail():
        with probability_file(tmp_path / "case.npz", scan()):
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left"):
        fail()
    assert list(tmp_path.iterdir()) == []
