"""ResEnc: published sizes, how blocks start, what levels see, and options that do not fit.

Published outputs are checked with the reader of its weights, in tests/weights/test_resenc.py.
"""

import pytest
import torch
from torch import nn

import misfm.models
from misfm.errors import ConfigError
from misfm.models.resenc import InstanceNorm, ResidualBlock
from misfm.testing import NetworkExample

TINY = {"channels": (4, 6, 8), "blocks": (1, 2, 2)}
EXAMPLES = [
    NetworkExample(
        "resenc",
        {"channels": (4, 6, 8), "blocks": (1, 2, 1)},
        wrong_options=[
            {"strides": [[2, 2]] * 2},
            {"kernel_sizes": ["abc"] * 3},
            {"convs_per_level": 1.5},
        ],
    ),
    NetworkExample(
        "resenc-l",
        {
            **TINY,
            "strides": ((2, 2, 2), (1, 2, 2)),
            "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        },
        wrong_options=[{"blocks": (1, 2)}, {"strides": None, "kernel_sizes": [[2, 3, 3]] * 3}],
    ),
]


def tiny(patch_size=(16, 16, 16), **options):
    torch.manual_seed(0)
    return misfm.models.create("resenc", num_classes=2, patch_size=patch_size, **{**TINY, **options})


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("num_classes", "expected"), [(1, 102_348_965), (2, 102_349_770), (5, 102_352_185), (14, 102_359_430)]
)
def test_preset_l_has_the_published_number_of_parameters(num_classes, expected):
    with torch.device("meta"):
        model = misfm.models.create(
            "resenc-l", num_classes=num_classes, patch_size=(160, 160, 160), deep_supervision=True
        )
    assert num_parameters(model) == expected
    assert num_parameters(model.backbone.encoder) == 90_296_576
    assert model.backbone.strides == tuple((2**level,) * 3 for level in range(5))
    assert model.backbone.min_divisor == (32, 32, 32)


def test_preset_l_keeps_its_steps_where_resenc_follows_the_patch():
    flat = (16, 64, 64)
    with torch.device("meta"):
        preset = misfm.models.create("resenc-l", num_classes=2, patch_size=flat).backbone
        fitted = misfm.models.create("resenc", num_classes=2, patch_size=flat).backbone
    assert preset.options["strides"] == [[2, 2, 2]] * 5
    assert fitted.options["strides"] == [[2, 2, 2]] * 4 + [[1, 2, 2]]
    assert num_parameters(preset) > num_parameters(fitted)  # transposed kernels are as large as the steps


def test_blocks_start_as_their_shortcut():
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, (3, 3, 3), (1, 2, 2)).apply(misfm.models.resenc.initialise)
    x = torch.randn(1, 4, 4, 8, 8)
    with torch.no_grad():
        expected = nn.functional.leaky_relu(nn.functional.avg_pool3d(x, (1, 2, 2)), 0.01)
        torch.testing.assert_close(block(x), expected, atol=0.01, rtol=0)


def test_kernels_start_with_the_deviation_that_he_and_others_derive():
    block = ResidualBlock(64, 64, (3, 3, 3)).apply(misfm.models.resenc.initialise)
    deviation = (2 / (1 + 0.01**2) / (64 * 27)) ** 0.5
    assert block.conv1.conv.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert not block.conv1.conv.bias.any()


def test_a_shortcut_has_weights_only_where_the_width_changes():
    assert not list(ResidualBlock(4, 4, (3, 3, 3), (2, 2, 2)).shortcut.parameters())
    assert {name for name, _ in ResidualBlock(4, 6, (3, 3, 3)).shortcut.named_parameters()} == {
        "conv.weight",
        "norm.weight",
        "norm.bias",
    }


def test_norm_of_a_single_voxel_is_its_bias():
    norm = InstanceNorm(3)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 1, 1, 1)
    torch.testing.assert_close(norm(x), norm.bias.view(1, 3, 1, 1, 1).expand(2, -1, -1, -1, -1))
    voxels = torch.randn(2, 3, 2, 3, 4)
    torch.testing.assert_close(norm(voxels), nn.InstanceNorm3d.forward(norm, voxels))
    step = (2, 2, 2)
    assert tiny((4, 4, 4), strides=[step, step])(torch.randn(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_a_flat_kernel_does_not_see_neighbouring_slices():
    model = tiny(strides=[(1, 2, 2)] * 2, kernel_sizes=[(1, 3, 3)] * 3).eval()
    for norm in (module for module in model.modules() if isinstance(module, InstanceNorm)):
        norm.forward = lambda x: x  # statistics over the whole patch would carry a change anywhere
    x = torch.randn(1, 1, 4, 16, 16)
    changed = x.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        difference = (model(x) - model(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert [float(value) > 0 for value in difference] == [False, False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1, 2)}, "at least two levels, each with one or more channels and blocks"),
        ({"channels": (4,), "blocks": (1,)}, "at least two levels"),
        ({"convs_per_level": 0}, "one or more convolutions"),
        ({"strides": [(2, 2, 2)]}, "ResEnc of 3 levels needs one stride"),
        ({"kernel_sizes": [(3, 3, 3)] * 2}, "ResEnc of 3 levels needs one odd kernel size"),
        ({"kernel_sizes": [(2, 3, 3)] * 3}, "one odd kernel size"),
        ({"block": (1, 1, 1)}, "did you mean 'blocks'"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)
