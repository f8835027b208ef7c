"""Computing blocks twice saves memory and changes nothing: gradients, running statistics, draws, names."""

import importlib.util
from pathlib import Path

import pytest
import torch

from misfm.models.blocks import blocks_of
from misfm.pretext import PRETEXTS
from misfm.testing.pretexts import Trial
from misfm.training.precision import exact_convolutions
from misfm.training.recompute import recomputed

spec = importlib.util.spec_from_file_location(
    "examples_of_networks", Path(__file__).parents[1] / "models" / "test_contract.py"
)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
RANDOM = {
    "pctnet": {"dropout": 0.2},
    "fmunet": {"dropout": 0.2},
    "primus": {"drop_path": 0.3},
}


def saved_by(step):
    """Bytes that autograd keeps for the backward pass of what ``step`` returns, and that."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), loss


def trained(model, step):
    """Bytes kept, gradients, buffers and the next draw after a step."""
    torch.manual_seed(3)
    size, loss = saved_by(step)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return size, {"loss": loss, **gradients, **buffers, "next draw": torch.rand(1)}


def check_same(model, step, before):
    plain, expected = trained(model, step)
    model.load_state_dict(before)
    with recomputed(model):
        assert list(model.state_dict()) == list(before)
        less, found = trained(model, step)
    assert expected.keys() == found.keys()
    for name, ours in expected.items():
        assert (ours is None) is (found[name] is None), name
        assert ours is None or torch.equal(found[name], ours), name
    return plain, less


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("example", module.EXAMPLES, ids=lambda example: example.name)
def test_networks_are_trained_the_same_in_less_memory(example, precision):
    options = RANDOM.get(example.name, {})
    model, x = example.build(deep_supervision=True, **options).train(), example.image()

    def step():
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with mixed, exact_convolutions(x.device):
            outputs = model(x)
        return torch.stack([output.float().square().mean() for output in outputs]).sum()

    assert blocks_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, less = check_same(model, step, before)
    assert less < plain
    assert all("forward" not in vars(part) for part in model.modules())
    with torch.no_grad():
        with recomputed(model.eval()):
            outputs = model(x)
        assert all(torch.equal(*pair) for pair in zip(outputs, model(x), strict=True))


@pytest.mark.parametrize("name", PRETEXTS.names())
def test_pretext_tasks_are_trained_the_same(name):
    trial = Trial(PRETEXTS.get(name)())
    model, batch = trial.model().train(), trial.prepare()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step():
        return torch.stack(list(trial.run(model, batch).values())).sum()

    plain, less = check_same(model, step, before)
    assert less < plain
