"""Ensembles: the mean of class probabilities, blended over windows like one network."""

import pytest
import torch
from torch import nn

from misfm.inference.ensemble import Ensemble
from misfm.inference.sliding_window import predict_logits


class Mixing(nn.Module):
    """A small convolution; as a list of logits, finest first."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x):
        return [8 * self.conv(x), self.conv(x)]


def probabilities(network, image, window):
    slabs = [slab for _, slab in predict_logits(network.eval(), image, window)]
    return torch.cat(slabs, dim=1).softmax(0)


def test_copies_of_a_network_label_as_it_does_alone():
    image = torch.randn(1, 9, 8, 11)
    alone = probabilities(Mixing(0), image, (6, 5, 6))
    assert torch.allclose(probabilities(Ensemble([Mixing(0)] * 3), image, (6, 5, 6)), alone, atol=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_probabilities_are_averaged(count):
    image, networks = torch.randn(1, 6, 6, 6), [Mixing(seed) for seed in range(count)]
    by_hand = sum(probabilities(network, image, (6, 6, 6)) for network in networks) / count
    assert torch.allclose(probabilities(Ensemble(networks), image, (6, 6, 6)), by_hand, atol=1e-6)


def test_certain_networks_of_low_precision_give_finite_numbers():
    class Certain(nn.Module):
        def forward(self, x):
            return torch.cat([x, -x], dim=1).bfloat16()

    out = Ensemble([Certain(), Certain()])(torch.full((1, 1, 2, 2, 2), 1e6))
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.equal(out.softmax(1)[0, :, 0, 0, 0], torch.tensor([1.0, 0.0]))


def test_probabilities_of_regions_are_averaged():
    image, networks = torch.randn(1, 1, 6, 6, 6), [Mixing(seed).eval() for seed in range(3)]
    by_hand = sum(network(image)[0].sigmoid() for network in networks) / 3
    together = Ensemble(networks, regions=True)(image)
    assert torch.allclose(together.sigmoid(), by_hand, atol=1e-6)

    class Certain(nn.Module):
        def forward(self, x):
            return torch.cat([x, -x], dim=1).bfloat16()

    certain = Ensemble([Certain(), Certain()], regions=True)(torch.full((1, 1, 2, 2, 2), 1e6))
    assert certain.isfinite().all()
    assert torch.equal(certain.sigmoid()[0, :, 0, 0, 0], torch.tensor([1.0, 0.0]))
