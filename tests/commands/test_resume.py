"""A run killed at any moment and resumed is the uninterrupted one, bit for bit; Ctrl-C says how to go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

# The command line, doomed: after the checkpoint of step 4 it is killed at a moment nobody knows, in a step or
# while it writes, and it cannot finish before.
DOOMED = """
import os, random, signal, sys, threading, time
import misfm.training.loop as loop
step = loop.train_step
def doomed_step(session, *others, **options):
    if session.state.step == 4:
        threading.Timer(random.uniform(0, 0.3), os.kill, (os.getpid(), signal.SIGKILL)).start()
    if session.state.step == 11:
        time.sleep(600)
    return step(session, *others, **options)
loop.train_step = doomed_step
from misfm.cli import main
sys.argv[0] = "misfm"
main()
"""


def run_until_killed(arguments, out):
    # As many threads as this process: sums depend on how they are shared out.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-c", DOOMED, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / "checkpoints" / "last.pt").exists()
    assert not (out / "weights.safetensors").exists()


def tensors(run):
    return load_file(run / "weights.safetensors")


def metrics(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_s"} for row in rows]


def assert_same_run(first, second):
    assert metrics(first) == metrics(second)
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()


STEPS = [
    "--set",
    "training.steps=12",
    "--set",
    "training.log_every=1",
    "--set",
    "training.checkpoint_every=4",
]


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_killed_and_resumed_is_as_if_nothing_had_happened(run_command, tmp_path, request, verb):
    source = {"pretrain": "store", "finetune": "dataset"}[verb]
    options = request.getfixturevalue({"pretrain": "tiny_pretraining", "finetune": "tiny_finetuning"}[verb])
    command = [verb, f"--{source}", request.getfixturevalue(source), *options, *STEPS]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run_until_killed([*command, "--out", killed], killed)

    refused = run_command(*command, "--out", killed)
    assert refused.status == 2
    assert "add --resume to go on with it" in refused.error

    assert run_command(*command, "--out", killed, "--resume").status == 0
    assert run_command(*command, "--out", whole).status == 0
    assert_same_run(whole, killed)
    if verb == "finetune":
        assert (whole / "validation.json").read_text() == (killed / "validation.json").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(run_command, store, tmp_path, tiny_pretraining):
    out = tmp_path / "run"
    command = ["pretrain", "--store", store, "--out", out, *tiny_pretraining]
    command += ["--set", "training.steps=100000"]

    def interrupt():
        while not (out / "checkpoints" / "last.pt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    done = run_command(*command)
    thread.join()
    assert done.status == 1
    assert done.error.startswith("Error: Stopped after step ")
    assert "run the same command with --resume to go on" in done.error
    assert not (out / "weights.safetensors").exists()


def test_scans_ingested_later_do_not_change_what_a_pretraining_learns_from(
    run_command, scans, store, tmp_path, tiny_pretraining
):
    growing = tmp_path / "store"
    ingest = ("ingest", "--store", growing, "--spacing", "14,14,14", "--intensity", "ct:-200,600")
    first = sorted(scans.iterdir())
    assert run_command(*ingest, *first[:3]).status == 0
    before = tmp_path / "before"
    shutil.copytree(growing, before)
    whole = ("pretrain", "--store", growing, "--out", tmp_path / "run", *tiny_pretraining)
    assert run_command(*whole).status == 0
    expected = tensors(tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()  # as if it had been stopped at the end
    assert run_command(*ingest, first[3]).status == 0
    resumed = run_command(*whole, "--resume")
    assert resumed.status == 0
    assert "has 1 volumes that it had not when the run began" in resumed.err
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(tmp_path / "run").items())
    info = json.loads(run_command("info", tmp_path / "run" / "weights.safetensors", "--json").out)
    assert info["data"]["count"] == 2
    shutil.rmtree(growing)
    assert run_command(*ingest, *first[2:]).status == 0
    gone = run_command(*whole, "--resume")
    assert gone.status == 2
    assert "2 of the volumes that the run in" in gone.error


def test_a_run_resumes_with_its_own_settings_only(run_command, pretrained, store, tiny_pretraining):
    done = run_command(
        "pretrain", "--store", store, "--out", pretrained, *tiny_pretraining, "--seed", "9", "--resume"
    )
    assert done.status == 2
    assert "started with other settings (seed was 0, now 9)" in done.error


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_and_both_are_a_sentence(
    run_command, store, tmp_path, tiny_pretraining
):
    run = tmp_path / "run"
    command = ["pretrain", "--store", store, "--out", run, *tiny_pretraining]
    assert run_command(*command).status == 0
    rows, weights = metrics(run), (run / "weights.safetensors").read_bytes()
    last, previous = (run / "checkpoints" / f"{name}.pt" for name in ("last", "previous"))
    good = previous.read_bytes()
    last.write_bytes(last.read_bytes()[:1000])
    done = run_command(*command, "--resume")
    assert done.status == 0
    assert "last.pt is damaged: going on from the checkpoint before it." in done.err
    assert metrics(run) == rows
    assert (run / "weights.safetensors").read_bytes() == weights
    assert previous.read_bytes() == good  # the damaged one never takes its place
    for checkpoint in (last, previous):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = run_command(*command, "--resume")
    assert done.status == 1
    assert "is not a readable checkpoint" in done.error


def test_runs_from_before_there_was_patience_go_on(run_command, dataset, tmp_path, tiny_finetuning):
    command = ["finetune", "--dataset", dataset, "--out", tmp_path / "run", *tiny_finetuning]
    assert run_command(*command).status == 0
    config = tmp_path / "run" / "config.yaml"
    assert "  patience: 10\n" in config.read_text()
    assert run_command(*command, "--resume", "--set", "training.patience=3").status == 2
    config.write_text(config.read_text().replace("  patience: 10\n", ""))
    (tmp_path / "run" / "checksums.json").unlink()  # of which there were none, either
    assert run_command(*command, "--resume").status == 0


def test_the_checkpoint_of_another_run_is_refused(run_command, store, tmp_path, tiny_pretraining):
    commands = [
        ["pretrain", "--store", store, "--out", tmp_path / f"run-{seed}", "--seed", seed, *tiny_pretraining]
        for seed in "01"
    ]
    assert [run_command(*command).status for command in commands] == [0, 0]
    last = "checkpoints/last.pt"
    (tmp_path / "run-0" / last).write_bytes((tmp_path / "run-1" / last).read_bytes())
    done = run_command(*commands[0], "--resume")
    assert done.status == 1
    assert "last.pt was saved by a run with other settings" in done.error


def test_a_run_and_its_store_that_were_moved_go_on(run_command, store, tmp_path, tiny_pretraining):
    shutil.copytree(store, tmp_path / "here" / "store")
    command = ["pretrain", "--store", tmp_path / "here" / "store", "--out", tmp_path / "here" / "run"]
    assert run_command(*command, *tiny_pretraining).status == 0
    (tmp_path / "here").rename(tmp_path / "there")
    moved = ["pretrain", "--store", tmp_path / "there" / "store", "--out", tmp_path / "there" / "run"]
    done = run_command(*moved, *tiny_pretraining, "--resume")
    assert done.status == 0
    assert "is no longer at" in done.err
