"""Commands on several processes, as they are started: by misfm, torchrun or srun; and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from misfm.training.run import RunFolder

ENDLESS = ("--set", "training.steps=1000000", "--set", "training.log_every=1")
ALONE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MISFM = (sys.executable, "-m", "misfm")


def start(*command, **environment):
    return subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, **ALONE, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def others_of(process):
    """Processes that the leader has started."""
    tasks = f"/proc/{process.pid}/task/{process.pid}/children"
    return [int(number) for number in open(tasks).read().split()]


@pytest.fixture
def endless(tmp_path, store, tiny_pretraining):
    """Start a pretraining of two processes that goes on for ever; wait for its first checkpoint."""
    out = tmp_path / "run"
    options = ("pretrain", "--store", store, "--out", out, *tiny_pretraining, *ENDLESS)
    process = start(*MISFM, *options, "--devices", 2)
    wait_for(out / "checkpoints" / "last.pt", process)
    yield process, out
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds children in /proc")
@pytest.mark.parametrize("asked", ["leader", "other"])
def test_a_signal_to_any_process_stops_all_with_one_sentence(endless, asked):
    process, out = endless
    os.kill(process.pid if asked == "leader" else others_of(process)[0], signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.count("Error") == said.count("Stopped after step") == 1
    assert said.strip().endswith("run the same command with --resume to go on.")
    step = RunFolder(out).read_metrics()[-1]["step"]
    assert f"Stopped after step {step};" in said


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds children in /proc")
@pytest.mark.parametrize("killed", ["leader", "other"])
def test_where_one_is_killed_all_end_with_one_sentence(endless, killed):
    process, out = endless
    others = others_of(process)
    began = time.monotonic()
    os.kill(process.pid if killed == "leader" else others[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]  # until the last of them has closed its standard error
    assert time.monotonic() - began < 10
    assert said.count("Error") == 1
    assert f"Process {0 if killed == 'leader' else 1} of 2 was killed" in said.splitlines()[-1]
    assert RunFolder(out).has_checkpoint


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds children in /proc")
@pytest.mark.parametrize("killed", ["leader", "other"])
def test_where_one_is_killed_before_all_have_met_all_end(tmp_path, store, tiny_pretraining, killed):
    options = ("pretrain", "--store", store, "--out", tmp_path / "run", *tiny_pretraining)
    process = start(*MISFM, *options, "--devices", 2)
    while not (others := others_of(process)):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid if killed == "leader" else others[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]  # until the last of them has closed its standard error
    assert said.count("Process 1 of 2 was killed") == (killed == "other")
    assert "Traceback" not in said


def test_torchrun_starts_a_world(tmp_path, store, tiny_pretraining):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    options = ("pretrain", "--store", store, "--out", tmp_path / "run", *tiny_pretraining)
    process = start(*launcher, "-m", "misfm", *options)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert said.count("Weights: ") == 1
    kept = json.loads(RunFolder(tmp_path / "run").environment.read_text())
    assert kept["ranks"] == 2


def as_tasks(number, *command):
    """Start tasks as srun does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(number), "SLURM_NTASKS": str(number)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(*command, SLURM_PROCID=str(rank), **step, **place) for rank in range(number)]


def test_srun_starts_a_world(tmp_path, dataset, tiny_finetuning):
    options = ("finetune", "--dataset", dataset, "--out", tmp_path / "run", *tiny_finetuning)
    said = [task.communicate(timeout=300)[1] for task in as_tasks(2, *MISFM, *options)]
    assert "Weights: " in said[0]
    assert not said[1].strip()
    assert (tmp_path / "run" / "validation.json").exists()


def test_mistakes_are_told_once(tmp_path, store):
    options = ("pretrain", "--store", tmp_path / "none", "--out", tmp_path / "run")
    tasks = as_tasks(2, *MISFM, *options)
    said = [task.communicate(timeout=300)[1] for task in tasks]
    assert said[0].count("Error") == 1
    assert not said[1].strip()


def test_other_commands_are_done_by_one_process(monkeypatch, run_command, store):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    outcome = run_command("info", store)
    assert outcome.status == 2
    assert outcome.error.startswith("Error: `misfm info` is done by one process, and srun has started 4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    outcome = run_command("info", store)
    assert (outcome.status, outcome.err) == (2, "")
