"""A network that two processes share takes the steps of one process, and saves what one process saves."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from worlds import in_world

import misfm
from misfm import world
from misfm.commands.finetune import finetune
from misfm.models import create
from misfm.models.swin import SwinBlock
from misfm.ranks import Started
from misfm.training import engine
from misfm.training.batch_norm import share_batch_norms
from misfm.training.checkpoint import load_checkpoint
from misfm.training.ema import WeightAverage
from misfm.training.optim import OptimizerSettings, build_optimizer
from misfm.training.recompute import recomputed
from misfm.training.run import RunFolder
from misfm.training.sharding import (
    gathered,
    global_norm,
    is_sharded,
    optimizer_shares,
    put_together,
    shard,
    shares,
)

NETWORKS = {
    "unet": {"channels": (4, 6, 8)},
    "pctnet": {"channels": (4, 6, 8, 8, 8), "num_heads": (2, 2, 2), "depths": (1, 1, 1), "dropout": 0.0},
    "primus": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}
SIZE, STEPS = (16, 32, 32), 3


def built(name):
    torch.manual_seed(1)
    model = create(name, num_classes=3, patch_size=SIZE, deep_supervision=True, **NETWORKS[name])
    model = model.double().train()  # AdamW makes steps of what is rounding in gradients that are zero
    share_batch_norms(model)
    for module in model.modules():
        if isinstance(module, SwinBlock):
            module.eval()  # what they skip is drawn for the samples of a rank
    return model


def steps(model, optimizer, average, first=0):
    """Take three steps on this rank's share of batches, and return the last norm of the gradient."""
    for step in range(first, first + STEPS):
        batch = torch.randn(2, 1, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        outputs = model(batch[world.share(2)])
        loss = torch.stack([world.total(output.square().sum()) / 9**5 for output in outputs]).sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    return float(global_norm(norm))


def trained(name, saved=None, first=0, *, twice=False):
    """States after some steps, as checkpoints have them, perhaps resumed from such."""
    model = built(name)
    whole = copy.deepcopy(model)
    if world.size() > 1:
        shard(model, init_device_mesh("cpu", (world.size(),)))
        assert is_sharded(model)
    optimizer = build_optimizer(model, OptimizerSettings(lr=1e-3))
    average = WeightAverage(model, 0.5)
    if saved is not None:
        saved = copy.deepcopy(saved)  # the optimiser goes on in the tensors that it is given
        model.load_state_dict(shares(saved[0], model.state_dict()))
        optimizer.load_state_dict(optimizer_shares(saved[1], optimizer))
        average.restore(shares(saved[2], average.values))
    if twice:
        with recomputed(model):
            norm = steps(model, optimizer, average, first)
    else:
        norm = steps(model, optimizer, average, first)
    put_together(model, whole)
    states = gathered((dict(model.state_dict()), optimizer.state_dict(), average.values))
    if world.is_leader():
        for key, value in states[0].items():
            assert torch.equal(whole.state_dict()[key], value)
    dist.is_initialized() and dist.barrier()
    return norm, states


def of_ranks(saved):
    return [(trained(name), trained(name, saved[name], STEPS, twice=True)) for name in NETWORKS]


def check(ours, theirs):
    (norm, (model, optimizer, average)), (other, (model2, optimizer2, average2)) = ours, theirs
    assert abs(norm - other) < 1e-8 * norm
    assert list(model) == list(model2)
    for one, two in ((model, model2), (average, average2)):
        for key, value in one.items():
            assert (two[key] - value).double().norm() <= 1e-6 * (1e-3 + value.double().norm()), key
    assert [group["params"] for group in optimizer["param_groups"]] == [
        group["params"] for group in optimizer2["param_groups"]
    ]
    for number, state in optimizer["state"].items():
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in optimizer2["state"][number].items()
        }


def test_two_processes_that_share_a_network_train_and_resume_as_one():
    alone = {name: trained(name) for name in NETWORKS}
    saved = {name: states for name, (_, states) in alone.items()}
    leader, _ = in_world(of_ranks, 2, saved)
    for name, (first, resumed) in zip(NETWORKS, leader, strict=True):
        check(alone[name], first)
        check(trained(name, saved[name], STEPS), resumed)
        check(trained(name, first[1], STEPS), trained(name, saved[name], STEPS))


STRATEGIES = ("ddp", "fsdp")


def trained_by_both(settings, out):
    """Fine-tune in each rank, which has the whole network, and then a share of it."""
    for strategy in STRATEGIES:
        place = Started(world.rank(), world.size(), world.size(), 1, "misfm"), strategy
        engine.own_place = lambda place=place: place
        world.led(lambda strategy=strategy: finetune(settings, out / strategy) and None)


def test_a_run_on_devices_with_shares_is_that_on_devices_with_all_of_the_network(tmp_path, finetune_settings):
    settings = finetune_settings(
        *("training.precision=float32", "training.steps=4", "training.validate_every=2", "batch_size=2"),
        *("training.ema=0.9", "training.accumulate=2", "training.recompute_activations=true"),
    )
    in_world(trained_by_both, 2, settings, tmp_path)
    ddp, fsdp = (RunFolder(tmp_path / strategy) for strategy in STRATEGIES)
    ours, theirs = (load_checkpoint(run.last) for run in (ddp, fsdp))
    assert_near(ours.model, theirs.model, 1e-4)
    assert_near(ours.average, theirs.average, 1e-4)
    assert ours.optimizer.keys() == theirs.optimizer.keys()
    assert ours.optimizer["param_groups"] == theirs.optimizer["param_groups"]
    one, two = (misfm.weights.describe(run.weights) for run in (ddp, fsdp))
    assert one.keys() == two.keys()
    rows, others = (run.read_metrics() for run in (ddp, fsdp))
    for row, other in zip(rows, others, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert other["gradient_norm"] == pytest.approx(row["gradient_norm"], rel=1e-3)
        assert other.get("validation_dice") == pytest.approx(row.get("validation_dice"), abs=1e-2)


def assert_near(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (theirs[name] - value).double().norm() <= tolerance * (value.double().norm() + 1), name
