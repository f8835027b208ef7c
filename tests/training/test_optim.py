"""Optimisers: encoder and the rest apart, norms and biases not decayed, a rate of 0 freezes."""

import pytest
import torch

from misfm.models import create
from misfm.seeding import generator_for
from misfm.training.mean_teacher import MeanTeacher
from misfm.training.optim import (
    OptimizerSettings,
    build_optimizer,
    encoder_depths,
    is_encoder,
    set_learning_rate,
)
from misfm.training.schedules import LearningRateScale

NAMES = pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])


OPTIONS = {
    "unet": {"channels": (4, 8)},
    "pctnet": {"channels": (4, 4, 4, 8, 8), "num_heads": (2, 2, 2)},
    "fmunet": {"channels": (4, 4, 4, 4, 8)},
    "resenc": {"channels": (4, 8, 8), "blocks": (1, 1, 1)},
    "primus": {"embed_dim": 24, "depth": 3, "num_heads": 2},
}


def tiny(network="unet"):
    torch.manual_seed(0)
    size = (16, 16, 32 if network == "fmunet" else 16)
    return create(network, num_classes=3, patch_size=size, **OPTIONS[network])


def groups_of(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        yield group, [names[id(parameter)] for parameter in group["params"]]


@pytest.mark.parametrize("network", ["unet", "pctnet"])
@NAMES
def test_every_parameter_is_in_one_group_of_its_kind(network, name):
    model = tiny(network)
    optimizer = build_optimizer(model, OptimizerSettings(name=name, weight_decay=0.1))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    seen = []
    for group, names in groups_of(model, optimizer):
        seen += names
        assert {name.startswith("backbone.encoder.") for name in names} == {group["in_encoder"]}
        for parameter in names:
            is_kernel = len(shapes[parameter]) > 1
            assert group["weight_decay"] == (0.1 if is_kernel else 0)
            assert is_kernel or parameter.endswith((".weight", ".bias"))
    assert sorted(seen) == sorted(shapes)
    assert len(optimizer.param_groups) == 4


def test_a_wrapped_model_has_the_same_encoder():
    assert is_encoder("backbone.encoder.stem.weight")
    assert is_encoder("_forward_module.backbone.encoder.stem.weight")
    assert not is_encoder("backbone.decoder.blocks.0.weight")
    assert not is_encoder("head.levels.0.0.weight")


@NAMES
def test_an_encoder_at_rate_0_stays_bit_for_bit_what_it_was(name):
    model = tiny()
    optimizer = build_optimizer(model, OptimizerSettings(name=name, lr=0.1, weight_decay=0.1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 1, 16, 16, 16, generator=generator_for(0))
    for _ in range(3):
        set_learning_rate(optimizer, 0.1, LearningRateScale(encoder=0.0, decoder=1.0))
        (model(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, value in model.state_dict().items():
        if is_encoder(key):
            assert torch.equal(value, before[key]), key
        elif value.ndim > 1:
            assert not torch.equal(value, before[key]), key


STEMS = {"unet": "stem", "pctnet": "project", "fmunet": "project", "resenc": "stem", "primus": "stem"}


@pytest.mark.parametrize("network", list(OPTIONS))
def test_rates_of_the_encoder_fall_towards_the_input(network):
    model = tiny(network)
    optimizer = build_optimizer(model, OptimizerSettings(name="adamw", layer_decay=0.5))
    set_learning_rate(optimizer, 1.0, LearningRateScale(encoder=1.0, decoder=1.0))
    rates = {
        parameter.removeprefix("backbone."): group["lr"]
        for group, names in groups_of(model, optimizer)
        for parameter in names
    }
    inside = {name: rate for name, rate in rates.items() if name.startswith("encoder.")}
    depth = len(set(inside.values()))
    assert sorted(set(inside.values())) == [0.5**power for power in range(depth, 0, -1)]
    assert {rate for name, rate in rates.items() if name not in inside} == {1.0}
    assert inside[f"encoder.{STEMS[network]}{'.conv' * (network == 'resenc')}.weight"] == 0.5**depth
    # In order of definition a branch never falls back: from the stem to the deepest level rates only rise.
    branches = {}
    for name, rate in inside.items():
        branches.setdefault("downs" if ".downs." in name else "", []).append(rate)
    assert all(branch == sorted(branch) for branch in branches.values())
    # The sawtooth freezes all of the encoder alike.
    set_learning_rate(optimizer, 1.0, LearningRateScale(encoder=0.0, decoder=0.5))
    assert {group["lr"] for group in optimizer.param_groups if group["in_encoder"]} == {0.0}
    assert {group["lr"] for group in optimizer.param_groups if not group["in_encoder"]} == {0.5}


def test_a_student_and_its_teacher_have_the_depths_of_the_network():
    model = tiny()
    depths = encoder_depths(model)
    assert depths.keys() == {name for name, _ in model.named_parameters() if is_encoder(name)}
    both = encoder_depths(MeanTeacher(model, decay=0.9))
    for who in ("student", "teacher"):
        assert {f"{who}.{name}": depth for name, depth in depths.items()}.items() <= both.items()
    assert len(both) == 2 * len(depths)


def test_numbers_reach_the_optimiser():
    model = tiny()
    sgd = build_optimizer(model, OptimizerSettings(name="sgd", lr=0.01, momentum=0.9))
    assert {(group["lr"], group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {
        (0.01, 0.9, True)
    }
    adam = build_optimizer(model, OptimizerSettings(name="adam", betas=(0.9, 0.98)))
    assert isinstance(adam, torch.optim.Adam)
    assert {group["betas"] for group in adam.param_groups} == {(0.9, 0.98)}


def test_a_checkpoint_from_before_layer_wise_rates_goes_on_at_the_full_rate():
    optimizer = build_optimizer(tiny(), OptimizerSettings(lr=0.5))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["rate"]
    optimizer.load_state_dict(saved)
    set_learning_rate(optimizer, 0.5, LearningRateScale(encoder=0.2, decoder=1.0))
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.5}
