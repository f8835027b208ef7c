"""What is faster gives the same numbers; float16 survives gradients that overflow."""

from __future__ import annotations

import math

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from misfm.errors import ConfigError
from misfm.models import create
from misfm.training import precision
from misfm.training.fast import is_fused, made_ready, may_overflow
from misfm.training.optim import OptimizerSettings, build_optimizer
from misfm.training.precision import fabric_precision
from misfm.training.settings import TrainingSettings

NETWORKS = {
    "unet": ({"channels": (4, 8, 8)}, (12, 16, 14)),
    "resenc": ({"channels": (4, 8, 8), "blocks": (1, 1, 1)}, (16, 16, 16)),
    "fmunet": ({"channels": (4, 4, 8, 8, 8), "depth": 1, "dropout": 0.0}, (16, 32, 16)),
    "pctnet": ({"channels": (4, 8, 8, 16, 16), "depths": (1, 1, 1), "num_heads": (2, 2, 2)}, (32, 32, 32)),
    "primus": ({"embed_dim": 24, "depth": 2, "num_heads": 2}, (16, 16, 24)),
}


def network(name="unet"):
    options, size = NETWORKS[name]
    torch.manual_seed(0)
    return create(name, in_channels=1, num_classes=3, patch_size=size, **options), torch.randn(2, 1, *size)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_may_lie_side_by_side(name):
    model, x = network(name)
    other, _ = network(name)
    other = made_ready(other, TrainingSettings(steps=1, channels_last=True))
    volumes = [parameter for parameter in other.parameters() if parameter.ndim == 5]
    assert all(volume.is_contiguous(memory_format=torch.channels_last_3d) for volume in volumes)
    torch.manual_seed(1)
    model(x).square().mean().backward()
    torch.manual_seed(1)
    other(x).square().mean().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3)


def test_a_compiled_network_keeps_the_names_of_its_weights(monkeypatch):
    model, x = network()
    expected, names = model.eval()(x), list(model.state_dict())
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    assert made_ready(model, TrainingSettings(steps=1, compile=True)) is model
    assert compiled == [model]
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), expected)


def test_float16_is_refused_where_nothing_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"float16 is for GPUs.*bfloat16"):
        fabric_precision("float16")


@pytest.mark.parametrize(
    ("native", "capability", "expected"),
    [(True, (9, 0), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 1), "32-true")],
)
def test_a_gpu_gets_the_type_that_it_is_fast_in(native, capability, expected, monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(precision.torch.cuda, "get_device_capability", lambda: capability)
    assert fabric_precision("auto") == expected


def scaled():
    """A model in float16 on the CPU, where Fabric does not choose it by itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    model = nn.Linear(2, 1)
    return fabric, *fabric.setup(model, build_optimizer(model, OptimizerSettings(lr=0.1)))


def test_steps_that_overflow_are_left_out_and_scaled_less():
    fabric, model, optimizer = scaled()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert not is_fused(fabric)

    def step(factor):
        fabric.backward(model(torch.ones(1, 2)).float().sum() * factor)
        norm = fabric.clip_gradients(model, optimizer, max_norm=12.0, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    assert not math.isfinite(step(math.inf))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert may_overflow(fabric)
    assert fabric.strategy.precision.state_dict()["scale"] == 2.0**3
    assert math.isfinite(step(1.0))
    assert not torch.equal(before[0], next(model.parameters()))
    for _ in range(4):
        step(math.nan)
    assert not may_overflow(fabric)  # no scale is small enough: the loss is at fault
