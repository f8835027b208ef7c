"""What every network must do; a new one needs a small setting in ``TINY`` and passes, or is not one."""

import io
import json

import pytest
import torch

import misfm.models
from misfm.errors import ConfigError
from misfm.models.base import NETWORKS, Backbone, SegmentationModel
from misfm.seeding import generator_for
from misfm.weights.adapt import POSITIONS

PRIMUS = ("primus", "primus-s", "primus-b", "primus-m", "primus-l")
TINY = {
    "unet": {"channels": (4, 6, 8)},
    "pctnet": {"channels": (4, 4, 6, 8, 12), "num_heads": (2, 2, 3), "window_sizes": (3, 2, 2)},
    "fmunet": {"channels": (4, 5, 6, 7, 8), "depth": 1},
    "resenc": {"channels": (4, 6, 8), "blocks": (1, 2, 1)},
    "resenc-l": {
        "channels": (4, 6, 8),
        "blocks": (1, 2, 2),
        "strides": ((2, 2, 2), (1, 2, 2)),
        "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    },
    **{name: {"embed_dim": 24, "depth": 2, "num_heads": 2} for name in PRIMUS},
}
ODD_SIZES = [(9, 20, 35), (17, 16, 30)]
PATCH_SIZES = {
    "unet": [(16, 32, 32), *ODD_SIZES],
    "pctnet": [(16, 32, 32), (8, 48, 16)],
    "fmunet": [(16, 32, 32), *ODD_SIZES],
    "resenc": [(16, 32, 32), *ODD_SIZES],
    "resenc-l": [(16, 32, 32), *ODD_SIZES],
    **{name: [(16, 32, 32), (8, 24, 40)] for name in PRIMUS},
}
SINGLE_LEVEL = set(PRIMUS)
"""Networks whose head leads from the coarsest features to one output, so that their decoder is empty."""

every_network = pytest.mark.parametrize("name", sorted(TINY))
every_size = pytest.mark.parametrize(
    ("name", "patch_size"), [(name, size) for name, sizes in PATCH_SIZES.items() for size in sizes], ids=str
)


def tiny(name, patch_size=(16, 32, 32), seed=0, **options):
    torch.manual_seed(seed)
    settings = {"in_channels": 2, "num_classes": 3, **TINY[name], **options}
    return misfm.models.create(name, patch_size=patch_size, **settings)


def image(patch_size=(16, 32, 32), batch_size=2):
    return torch.randn(batch_size, 2, *patch_size, generator=generator_for("image"))


def test_every_network_is_checked_here():
    assert sorted(TINY) == sorted(PATCH_SIZES) == NETWORKS.names()


@every_size
def test_logits_have_the_shape_of_the_patch(name, patch_size):
    x = image(patch_size)
    before = x.clone()
    with torch.no_grad():
        logits = tiny(name, patch_size)(x)
    assert logits.shape == (2, 3, *patch_size)
    assert bool(logits.isfinite().all())
    assert torch.equal(x, before)


@every_network
@pytest.mark.parametrize("patch_size", ODD_SIZES, ids=str)
def test_a_size_that_does_not_fit_is_answered_with_the_nearest_that_does(name, patch_size):
    if patch_size not in PATCH_SIZES[name]:
        with pytest.raises(ConfigError, match="the nearest size that works is"):
            tiny(name, patch_size)


@every_size
@pytest.mark.parametrize("training", [True, False])
def test_deep_supervision_lists_logits_finest_first(name, patch_size, training):
    model = tiny(name, patch_size, deep_supervision=True).train(training)
    with torch.no_grad():
        outputs = model(image(patch_size))
    assert isinstance(outputs, list)
    assert len(outputs) == len(model.backbone.channels) == len(model.backbone.strides)
    assert (len(outputs) == 1) is (name in SINGLE_LEVEL)
    assert outputs[0].shape[2:] == patch_size
    for output, strides in zip(outputs, model.backbone.strides, strict=True):
        expected = [-(-side // stride) for side, stride in zip(patch_size, strides, strict=True)]
        assert output.shape == (2, 3, *expected)
    sizes = [output[0, 0].numel() for output in outputs]
    assert sizes == sorted(sizes, reverse=True)


@every_network
def test_keeping_the_finest_output_changes_nothing_about_it(name):
    model = tiny(name, deep_supervision=True).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        finest = model(image())[0]
        assert torch.equal(model.keep_finest()(image()), finest)
    dropped = parameters - sum(parameter.numel() for parameter in model.parameters())
    assert (dropped == 0) is (name in SINGLE_LEVEL)
    plain = tiny(name, seed=1)
    plain.load_state_dict(model.state_dict())


@every_network
def test_a_state_dict_is_the_whole_model(name):
    model, other = tiny(name).eval(), tiny(name, seed=1).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        expected = model(image())
        assert not torch.equal(other(image()), expected)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(image()), expected)


@every_network
def test_predicting_is_deterministic_and_treats_samples_apart(name):
    model = tiny(name).eval()
    x = image()
    with torch.no_grad():
        both = model(x)
        assert torch.equal(model(x), both)
        assert torch.allclose(model(x[1:]), both[1:], atol=1e-5)


@every_network
def test_the_seed_decides_the_weights(name):
    first, same, other = tiny(name).state_dict(), tiny(name).state_dict(), tiny(name, seed=1).state_dict()
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_network
def test_gradients_reach_every_parameter(name):
    # In eval mode, since stochastic depth and dropout may switch a branch off for a step.
    model = tiny(name, deep_supervision=True).eval()
    sum((output**2).mean() for output in model(image())).backward()
    dead = [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or float(parameter.grad.abs().max()) == 0
    ]
    assert dead == []


@every_network
def test_the_parts_have_the_names_that_transfer_relies_on(name):
    model = tiny(name)
    assert isinstance(model, SegmentationModel)
    assert isinstance(model.backbone, Backbone)
    parts = {key.split(".")[0] for key in model.backbone.state_dict()}
    assert parts == ({"encoder"} if name in SINGLE_LEVEL else {"encoder", "decoder"})
    head = [key for key in model.state_dict() if key.startswith("head.")]
    more = tiny(name, num_classes=7).state_dict()
    assert head
    for key, value in model.state_dict().items():
        assert key in head or value.shape == more[key].shape


@every_network
def test_training_mode_accepts_a_batch_of_one(name):
    model = tiny(name).train()
    assert model(image(batch_size=1)).shape == (1, 3, 16, 32, 32)


@every_network
def test_its_options_build_the_same_network_for_another_patch_size(name):
    model = tiny(name, (16, 32, 32)).eval()
    options = model.backbone.options
    assert json.loads(json.dumps(options)) == options
    assert TINY[name].keys() < options.keys()
    larger = tiny(name, (32, 64, 32), seed=1, **options)
    assert larger.backbone.strides == model.backbone.strides
    assert larger.backbone.options == options
    positions = {key: value for key, value in model.state_dict().items() if key.endswith(POSITIONS)}
    assert bool(positions) is (model.backbone.grid is not None)
    larger.load_state_dict(model.state_dict() | {key: larger.state_dict()[key] for key in positions})
    again = tiny(name, (16, 32, 32), seed=2, **options).eval()
    again.load_state_dict(larger.state_dict() | positions)
    with torch.no_grad():
        assert torch.equal(again(image()), model(image()))


WRONG = [{"channels": 5}, {"channels": [16.5, 32]}, {"channels": "abcde"}, {"channels": [[1], 2]}]
WRONG_OF = {
    "unet": [
        {"strides": 2},
        {"strides": [[2.5, 2, 2]] * 2},
        {"strides": [[2, 2]] * 2},
        {"strides": ["abc"] * 2},
    ],
    "pctnet": [{"dropout": "a"}, {"window_sizes": [2.5, 2, 2]}, {"depths": None}, {"anisotropy": 1.0}],
    "fmunet": [{"dropout": "a"}, {"depth": 1.5}, {"depth": None}, {"anisotropy": 1.0}],
    "resenc": [
        {"blocks": 2},
        {"strides": [[2, 2]] * 2},
        {"kernel_sizes": ["abc"] * 3},
        {"convs_per_level": 1.5},
    ],
    "resenc-l": [{"blocks": (1, 2)}, {"strides": None, "kernel_sizes": [[2, 3, 3]] * 3}],
    **{
        name: [
            {"embed_dim": 24.5},
            {"depth": None},
            {"num_heads": [2]},
            {"drop_path": "a"},
            {"token_order": 1},
        ]
        for name in PRIMUS
    },
}


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name in TINY for wrong in WRONG + WRONG_OF[name]], ids=str
)
def test_an_option_of_a_wrong_type_is_one_sentence(name, wrong):
    with pytest.raises(ConfigError) as error:
        tiny(name, **wrong)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_an_option_of_a_wrong_type_is_named_with_its_network():
    with pytest.raises(
        ConfigError, match=r"Network 'unet' cannot be built with the options \{'channels': 5\}: "
    ):
        misfm.models.create("unet", num_classes=2, patch_size=(16, 32, 32), channels=5)


@every_network
def test_an_unknown_option_is_answered_with_the_nearest(name):
    option = next(iter(TINY[name]))
    with pytest.raises(ConfigError, match=f"did you mean '{option}'"):
        misfm.models.create(name, num_classes=2, patch_size=(16, 32, 32), **{option[:-1]: 4})


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="There is no network 'unett'; did you mean 'unet'"):
        misfm.models.create("unett", num_classes=2, patch_size=(16, 32, 32))


@every_network
@pytest.mark.parametrize(
    "wrong",
    [{"num_classes": 0}, {"in_channels": 0}, {"patch_size": (16, 32)}, {"patch_size": (16, 0, 32)}],
)
def test_impossible_sizes_are_refused_in_a_sentence(name, wrong):
    with pytest.raises(ConfigError, match="three positive sides"):
        misfm.models.create(name, **{"num_classes": 2, "patch_size": (16, 32, 32), **wrong})


def test_a_network_of_fixed_size_says_so():
    model = tiny("pctnet")
    with pytest.raises(ConfigError, match="patch_size="):
        model(image((16, 32, 48)))
