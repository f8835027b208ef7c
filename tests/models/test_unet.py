"""The lean U-Net: its pyramid, and weights that move between patch sizes."""

import itertools

import pytest
import torch

import misfm.models
from misfm.errors import ConfigError
from misfm.models.unet import level_strides
from misfm.seeding import generator_for
from misfm.testing import NetworkExample

TINY = {"channels": (4, 6, 8, 8)}
EXAMPLES = [
    NetworkExample(
        "unet",
        {"channels": (4, 6, 8)},
        wrong_options=[
            {"strides": 2},
            {"strides": [[2.5, 2, 2]] * 2},
            {"strides": [[2, 2]] * 2},
            {"strides": ["abc"] * 2},
        ],
    )
]


def tiny(patch_size, **options):
    torch.manual_seed(0)
    return misfm.models.create("unet", num_classes=3, patch_size=patch_size, **TINY, **options)


@pytest.mark.parametrize(
    ("patch_size", "expected"),
    [
        ((64, 64, 64), [(2, 2, 2)] * 4),
        ((8, 64, 64), [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2)]),
        ((7, 17, 40), [(1, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1)]),
        ((1, 1, 1), [(1, 1, 1)] * 4),
    ],
)
def test_axes_are_halved_while_four_voxels_stay(patch_size, expected):
    assert level_strides(patch_size, 4) == expected


@pytest.mark.parametrize("pair", itertools.permutations([(16, 16, 16), (5, 24, 40), (32, 32, 8)], 2), ids=str)
def test_weights_move_between_patch_sizes(pair):
    first, second = pair
    source, target = tiny(first), tiny(second)
    target.load_state_dict(source.state_dict())
    assert target.eval()(torch.zeros(1, 1, *second)).shape == (1, 3, *second)


def test_one_network_takes_patches_and_windows_of_other_sizes():
    model = tiny((16, 16, 16)).eval()
    x = torch.randn(1, 1, 24, 13, 30, generator=generator_for(0))
    assert model(x).shape == (1, 3, 24, 13, 30)


def test_voxels_far_away_count_through_the_bottleneck():
    model = tiny((32, 32, 32)).eval()
    x = torch.randn(1, 1, 32, 32, 32, generator=generator_for(1), requires_grad=True)
    model(x)[0, 1, 16, 16, 16].backward()
    assert float(x.grad[0, 0, 16, 16, 27].abs()) > 0


def test_constant_and_huge_inputs_stay_finite():
    model = tiny((8, 8, 8)).eval()
    for value in (0.0, 1.0, 1e4):
        assert bool(model(torch.full((1, 1, 8, 8, 8), value)).isfinite().all())


@pytest.mark.parametrize("channels", [(8,), (), (8, 0, 8)])
def test_a_pyramid_needs_two_levels(channels):
    with pytest.raises(ConfigError, match="at least two levels"):
        misfm.models.create("unet", num_classes=2, patch_size=(16, 16, 16), channels=channels)


def test_the_default_is_small_enough_to_ship_in_half_precision():
    model = misfm.models.create("unet", num_classes=5, patch_size=(40, 40, 40))
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) < 8 * 2**20


def test_strides_may_be_given_and_are_recorded():
    model = tiny((8, 16, 16))
    assert model.backbone.options["strides"] == [[2, 2, 2], [1, 2, 2], [1, 1, 1]]
    given = tiny((64, 64, 64), strides=[[2, 2, 2], [1, 2, 2], [1, 1, 1]])
    assert given.backbone.min_divisor == model.backbone.min_divisor == (2, 4, 4)
    for strides in ([[2, 2, 2]], [[2, 2, 2], [2, 2], [1, 1, 1]], [[2, 2, 2], [1, 0, 1], [1, 1, 1]]):
        with pytest.raises(ConfigError, match="needs one stride"):
            tiny((16, 16, 16), strides=strides)


def test_weights_that_learnt_with_other_strides_are_told_of():
    cube = tiny((64, 64, 64))
    theirs = {"strides": [[2, 2, 2]] * 3}
    assert cube.backbone.adopt(cube.backbone.options) == cube.backbone.adopt({}) == []
    (note,) = tiny((8, 64, 64)).backbone.adopt(theirs)
    assert "with strides=[[2, 2, 2], [2, 2, 2], [2, 2, 2]] and this one has [[2, 2, 2], [1" in note


@pytest.mark.parametrize(
    ("patch_size", "options"), [((1, 1, 1), {}), ((8, 5, 8), {"strides": [[2, 2, 2]] * 3})], ids=str
)
def test_a_bottleneck_of_one_voxel_is_refused_and_one_of_two_works(patch_size, options):
    with pytest.raises(ConfigError, match=r"leaves one voxel .* take more than \(\d, \d, \d\) along an axis"):
        tiny(patch_size, **options)
    d, h, w = patch_size
    model = tiny((d, h, w + 1), **options)
    assert model(torch.zeros(1, 1, d, h, w + 1)).shape == (1, 3, d, h, w + 1)
