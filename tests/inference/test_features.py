"""A vector of a scan: like scans have like vectors; channels and sizes are no obstacle."""

import pytest
import torch

from misfm.errors import ConfigError
from misfm.inference.features import embed
from misfm.models import create


def backbone(in_channels=1):
    torch.manual_seed(0)
    return create(
        "unet", in_channels=in_channels, num_classes=2, patch_size=(16, 16, 16), channels=[4, 8]
    ).backbone.eval()


def scan(*shape, seed=0, smooth=False):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return image.cumsum(dim=-1) / 4 if smooth else image


def test_like_scans_are_near_each_other():
    network = backbone()
    vectors = [
        torch.from_numpy(embed(network, scan(1, 20, 24, 28, seed=seed, smooth=smooth), (16, 16, 16)))
        for seed, smooth in ((0, False), (1, False), (2, True))
    ]
    assert torch.dist(vectors[0], vectors[1]) < torch.dist(vectors[0], vectors[2])


@pytest.mark.parametrize("shape", [(7, 9, 16), (40, 33, 17)])
def test_any_size_gives_mean_and_deviation_of_each_feature(shape):
    assert embed(backbone(), scan(1, *shape), (16, 16, 16)).shape == (2 * (4 + 8),)


def test_a_network_of_one_channel_looks_at_several_one_by_one():
    network, image = backbone(), scan(2, 16, 16, 16)
    both = embed(network, image, (16, 16, 16))
    assert both[:24] == pytest.approx(embed(network, image[:1], (16, 16, 16)))
    assert both[24:] == pytest.approx(embed(network, image[1:], (16, 16, 16)))


def test_a_network_of_several_channels_takes_no_others():
    with pytest.raises(ConfigError, match=r"have 1 channel\(s\) and the network takes 2"):
        embed(backbone(2), scan(1, 16, 16, 16), (16, 16, 16))
