"""FMUNet: published outputs, published sizes, and what it refuses."""

import json

import pytest
import torch
from golden_files import golden_file, load_golden

import misfm.models
import misfm.weights
from misfm.errors import ConfigError
from misfm.testing import NetworkExample

CHANNELS = (3, 4, 5, 6, 8)
EXAMPLES = [
    NetworkExample(
        "fmunet",
        {"channels": (4, 5, 6, 7, 8), "depth": 1},
        wrong_options=[{"dropout": "a"}, {"anisotropy": 1.0}],
    )
]


def tiny(patch_size=(16, 32, 32), **options):
    torch.manual_seed(0)
    settings = {"num_classes": 3, "channels": CHANNELS, "depth": 1, **options}
    return misfm.models.create("fmunet", patch_size=patch_size, **settings)


@pytest.mark.parametrize("name", ["fmunet_res0", "fmunet_res1"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_published_outputs_are_reproduced(name, deep_supervision):
    if not golden_file(f"{name}.safetensors").exists():
        pytest.skip("the golden files are not beside this repository")
    config = json.loads(golden_file(f"{name}.json").read_text())["config"]
    tensors = load_golden(golden_file(f"{name}.safetensors"))
    prefix = "state_dict."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    model = misfm.models.create(
        "fmunet",
        in_channels=config["in_chns"],
        num_classes=config["class_num"],
        patch_size=tensors["input"].shape[2:],
        deep_supervision=deep_supervision,
        channels=config["feature_chns"],
        depth=config["depth"],
        anisotropy=config["res_mode"],
        dropout=config["dropout"],
    )
    report = misfm.weights.load(model, state)
    assert report.reinitialised == report.adapted == []
    assert report.pretrained_parameters == report.num_parameters
    with torch.no_grad():
        outputs = model.eval()(tensors["input"])
    outputs = outputs if deep_supervision else [outputs]
    assert len(outputs) == (4 if deep_supervision else 1)
    for level, output in enumerate(outputs):
        expected = tensors[f"output.{level}"]
        assert (output - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("anisotropy", "num_parameters"), [(0, 47_371_572), (1, 47_220_660), (2, 46_625_076)]
)
def test_parameters_of_the_published_configuration(anisotropy, num_parameters):
    with torch.device("meta"):
        model = misfm.models.create(
            "fmunet", num_classes=5, patch_size=(64, 128, 128), deep_supervision=True, anisotropy=anisotropy
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert anisotropy or len(model.state_dict()) == 146


@pytest.mark.parametrize(
    ("anisotropy", "strides"),
    [
        (0, ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))),
        (1, ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8))),
        (2, ((1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8))),
    ],
)
def test_anisotropy_keeps_the_depth_of_the_finest_levels(anisotropy, strides):
    model = tiny((16, 32, 32), anisotropy=anisotropy, deep_supervision=True).eval()
    assert model.backbone.strides == strides
    kernels = [level.units[0][-1].kernel_size[0] for level in model.backbone.encoder.levels]
    assert kernels == [1] * anisotropy + [3] * (5 - anisotropy)
    heads = [level[-1].kernel_size for level in model.head.levels]
    assert heads == [(depth, 3, 3) for depth in kernels[:4]]


def test_each_unit_adds_to_its_input():
    level = tiny(depth=2).backbone.encoder.levels[0]
    for unit in level.units:
        torch.nn.init.zeros_(unit[-1].weight)
        torch.nn.init.zeros_(unit[-1].bias)
    x = torch.randn(1, CHANNELS[0], 4, 6, 8)
    before = x.clone()
    assert torch.equal(level(x), before)
    assert torch.equal(x, before)


def test_dropout_acts_on_levels_2_to_4_while_training():
    model = tiny(dropout=0.5).train()
    features = torch.randn(1, CHANNELS[1], 4, 4, 4)
    level = model.backbone.encoder.levels[1]
    assert torch.equal(level(features), level(features))
    features = torch.randn(1, CHANNELS[2], 4, 4, 4)
    for part in (model.backbone.encoder, model.backbone.decoder):
        level = part.levels[2]
        assert not torch.equal(level(features), level(features))
        assert torch.equal(level.eval()(features), level(features))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (4, 8, 16, 32)}, "five channels"),
        ({"channels": (4, 8, 16, 32, 0)}, "at least 1"),
        ({"depth": 0}, "a depth of 0"),
        ({"anisotropy": 3}, "FMUNet knows an anisotropy of 0, 1 or 2, got 3"),
        ({"dropout": 1.0}, "below 1"),
        ({"patch_size": (8, 16, 16)}, r"one voxel .* more than \(16, 16, 16\)"),
        ({"window_sizes": (2, 2, 2)}, "no option 'window_sizes'"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)
