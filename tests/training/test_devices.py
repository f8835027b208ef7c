"""Training in a world: which processes it is made of, and that W ranks take the steps of one."""

import os

import pytest
import torch
from torch.multiprocessing import ProcessExitedException
from worlds import in_world

from misfm import world
from misfm.commands.finetune import finetune
from misfm.commands.pretrain import pretrain
from misfm.errors import ConfigError
from misfm.training import devices, loop
from misfm.training.checkpoint import load_checkpoint
from misfm.training.devices import Devices, check_shares, chosen, parse_devices
from misfm.training.run import RunFolder

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
EXACT = ("training.precision=float32", "training.steps=12", "training.validate_every=12", "batch_size=4")


@pytest.fixture
def started(monkeypatch):
    def start(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize("asked", [Devices(), Devices("auto"), Devices(2, 1), Devices(2, strategy="ddp")])
def test_the_started_world_is_used(started, asked):
    started(TORCHRUN)
    assert (chosen(asked).rank, chosen(asked).size) == (1, 2)


def test_tasks_of_slurm_are_spread_over_machines(started):
    started(SRUN)
    found = chosen(Devices(2, 2))
    assert (found.rank, found.local_size, found.num_nodes) == (3, 2, 2)
    assert devices.meeting_place({"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_JOB_ID": "7"}, found)[0] == "n3"


@pytest.mark.parametrize(
    ("environment", "asked", "said"),
    [
        (TORCHRUN, Devices(3), "--devices 3, but torchrun has started 2 processes on each machine"),
        (SRUN, Devices(nodes=3), "--nodes 3, but srun has started 2 machines"),
        ({"SLURM_NTASKS": "4"}, Devices(), "SLURM gave this job 4 tasks"),
        ({}, Devices(nodes=2), "start misfm on each machine by srun or torchrun"),
        ({}, Devices(1, strategy="fsdp"), "give --devices 2 or more"),
    ],
)
def test_a_world_that_does_not_fit_is_complained_of(started, environment, asked, said):
    started(environment)
    with pytest.raises(ConfigError, match=said):
        chosen(asked)


def test_one_process_is_the_default(started):
    assert chosen(Devices()) is None
    started({"SLURM_NTASKS": "4"})
    assert chosen(Devices(1)) is None


@pytest.mark.parametrize("asked", [("0", None, "auto"), ("two", None, "auto"), ("2", None, "horovod")])
def test_options_that_say_nothing_are_refused(asked):
    with pytest.raises(ConfigError):
        parse_devices(*asked)


def share_five():
    with pytest.raises(ConfigError, match="batch_size 5 cannot be shared out evenly among 2 devices"):
        check_shares(5, "batch_size")
    check_shares(4, "batch_size")


def test_a_batch_is_shared_out_evenly():
    in_world(share_five, 2)


def trained(command, settings, out):
    """Train in each rank, or in this one process; return the first step's gradients before clipping."""
    gradients, clip = {}, loop.clip_gradients

    def recording(session):
        if not gradients:
            named = session.model.module.named_parameters()
            gradients.update({name: one.grad.clone() for name, one in named if one.grad is not None})
        return clip(session)

    loop.clip_gradients = recording
    try:
        world.led(lambda: command(settings, out) and None)
    finally:
        loop.clip_gradients = clip
    return gradients


def killed(command, settings, out):
    """Train in each rank, and end in the middle of step 8."""
    step = loop.train_step

    def doomed(session, stream, *, read):
        if session.state.step == 7:
            os._exit(9)
        return step(session, stream, read=read)

    loop.train_step = doomed
    world.led(lambda: command(settings, out))


def assert_near(found, expected, tolerance, leave=()):
    """Each tensor by its norm, but for those to leave out."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name not in leave and isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            assert (found[name] - tensor).norm() <= tolerance * tensor.norm() + 1e-12, name


def without_effect(gradients):
    """Biases that the norm behind them takes out again: their gradients are 0 but for rounding.

    AdamW makes whole steps of these, which have no effect on anything.
    """
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    names = {name for name, gradient in gradients.items() if gradient.norm() < 1e-6 * whole}
    assert all(name.endswith("bias") for name in names)
    return names


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_two_ranks_take_the_steps_of_one(tmp_path, pretrain_settings, finetune_settings, kind):
    command = {"pretrain": pretrain, "finetune": finetune}[kind]
    more = ("training.accumulate=2", "training.ema=0.9") if kind == "pretrain" else ()
    settings = {"pretrain": pretrain_settings, "finetune": finetune_settings}[kind](*EXACT, *more)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = trained(command, settings, one)
    leader, follower = in_world(trained, 2, command, settings, two)
    leave = without_effect(alone)
    assert without_effect(leader) == leave
    assert_near(leader, alone, 1e-5, leave)
    assert_near(follower, leader, 0)
    ends = [load_checkpoint(RunFolder(out).last) for out in (one, two)]
    assert_near(ends[1].model, ends[0].model, 1e-3, leave)
    rows = [RunFolder(out).read_metrics()[-1] for out in (one, two)]
    key = next(name for name in rows[0] if name.startswith("validation"))
    assert rows[1].keys() == rows[0].keys()
    assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-3)
    resumed = tmp_path / "resumed"
    with pytest.raises(ProcessExitedException):
        in_world(killed, 2, command, settings, resumed)
    assert load_checkpoint(RunFolder(resumed).last).step == 6
    command(settings, resumed, resume=True)
    assert_near(load_checkpoint(RunFolder(resumed).last).model, ends[0].model, 1e-3, leave)
