"""Commands that are asked to stop, killed at bad moments or started twice, and damaged files of theirs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from misfm.commands import arm, folds, keep
from misfm.commands.finetune import finetune
from misfm.data import patches
from misfm.errors import DataError
from misfm.files import CHECKSUMS, write_checked_json
from misfm.training.exclusive import exclusive
from misfm.training.run import RunFolder


def spawn(*arguments, threads=1):
    """Start a command in a process group of its own, as ``scancel`` and ``docker stop`` find it."""
    # Clusters of earlier tests may have left the second of them behind, and torch takes the less of both.
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = {**os.environ, **counts, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "misfm", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def stop(process, number):
    """Send a signal to the whole group; return what was said, once it has ended, in time."""
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def compared(tiny_pretraining, tiny_finetuning, *more):
    """Options of a comparison of tiny runs; ``more`` are settings of its pretraining."""
    shared = [line for line in tiny_pretraining[1::2] if not line.startswith("pretext")]
    return [
        *(part for line in (*shared, *more) for part in ("--set-pretrain", line)),
        *(part for line in tiny_finetuning[1::2] for part in ("--set-finetune", line)),
    ]


def as_options(*assignments):
    return [part for assignment in assignments for part in ("--set", assignment)]


ENDLESS = as_options("training.steps=1000000", "training.validate_every=1000000", "training.log_every=1")


def test_a_training_with_workers_is_stopped_with_its_group(tmp_path, dataset, tiny_finetuning):
    workers = as_options("training.num_workers=2")
    out = tmp_path / "run"
    process = spawn("finetune", "--dataset", dataset, "--out", out, *tiny_finetuning, *ENDLESS, *workers)
    wait_for(out / "checkpoints" / "last.pt", process)
    said = stop(process, signal.SIGUSR1)
    assert said.startswith("Error: Stopped after step ")
    assert said.endswith(f"the state is saved in {out}: run the same command with --resume to go on.")
    step = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"after step {step};" in said


@pytest.mark.slow
def test_a_comparison_in_processes_saves_what_they_train(
    tmp_path, store, dataset, tiny_pretraining, tiny_finetuning
):
    out = tmp_path / "comparison"
    what = ("--store", store, "--dataset", dataset, "--recipes", "patch-swapping", "--out", out)
    settings = compared(tiny_pretraining, tiny_finetuning, *ENDLESS[1::2])
    process = spawn("compare", *what, *settings, "--cases", "1", "--workers", "2")
    run = out / "unet-patch-swapping"
    wait_for(run / "checkpoints" / "last.pt", process)
    said = stop(process, signal.SIGTERM)
    assert said == "Stopped: what was finished is kept; run the same command again to go on."
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert state["step"] == json.loads(rows[-1])["step"]
    assert not (run / "run.lock").exists()


@pytest.fixture
def stop_in_step(monkeypatch):
    """Ask this process to stop while it reads the last batch of a fine-tuning, once."""
    read, asked = patches.LabelledPatches.__getitem__, []

    def stop_at(step):
        def ask(self, index):
            if index == step and not asked:
                asked.append(index)
                os.kill(os.getpid(), signal.SIGTERM)
            return read(self, index)

        monkeypatch.setattr(patches.LabelledPatches, "__getitem__", ask)

    return stop_at


@pytest.mark.parametrize("more", [["--fold", "all", "--set", "folds=2"], ["--twin", "--weights", "RUN"], []])
def test_a_stop_in_the_last_step_ends_all(
    run_command, stop_in_step, tmp_path, dataset, finetuned, tiny_finetuning, more
):
    out = tmp_path / "run"
    more = [finetuned if part == "RUN" else part for part in more]
    overlap = as_options("allow_overlap=true")
    fixed = ["--cases", "1", *tiny_finetuning, *overlap]
    command = ["finetune", "--dataset", dataset, "--out", out, *fixed, *more]
    stop_in_step(3)
    done = run_command(*command)
    assert done.status == 1
    assert "Error: Stopped after step 4; the state is saved" in done.error
    assert len([*out.rglob("last.pt")]) == 1
    assert not [*out.rglob("weights.safetensors")]
    assert run_command(*command, "--resume").status == 0


def test_a_comparison_stops_in_the_last_step_of_an_arm(
    run_command, stop_in_step, tmp_path, store, dataset, tiny_pretraining, tiny_finetuning
):
    out = tmp_path / "comparison"
    command = ("compare", "--store", store, "--dataset", dataset, "--recipes", "patch-swapping", "--out", out)
    command += ("--seeds", "0", "--cases", "1", *compared(tiny_pretraining, tiny_finetuning))
    stop_in_step(3)
    done = run_command(*command)
    assert done.status == 1
    assert done.error.endswith(": run the same command again to go on.")
    assert len(list((out / "finetune").iterdir())) == 1
    assert run_command(*command).status == 0


def contents(run):
    """What a run has written, but for times and what is only for people."""
    names = ("config.yaml", "split.json", "plan.txt", "chosen.json", "validation.json", "weights.safetensors")
    found = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return found, [{key: row[key] for key in row if key != "samples_per_s"} for row in rows]


class Killed(BaseException):
    """Stands for a process that ends here and now."""


def test_a_kill_at_the_end_of_a_run_leaves_nothing_out(tmp_path, finetune_settings, monkeypatch):
    settings = finetune_settings("patch_size=null")  # planned, with a reason
    finetune(settings, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert "plan.txt" in whole[0]
    for count in range(8):  # of the writes that come before the kill
        out, left = tmp_path / f"run{count}", [count]

        def killed(write, left=left):
            def one(path, *others, **options):
                if path.name not in ("last.pt", "best.pt") and left[0] == 0:
                    raise Killed
                left[0] -= 1
                return write(path, *others, **options)

            return one

        with monkeypatch.context() as patched:
            for module, name in (
                (keep, "write_checked_json"),
                (keep, "save"),
                (sys.modules["misfm.files"], "write_bytes"),
            ):
                patched.setattr(module, name, killed(getattr(module, name)))
            with pytest.raises(Killed):
                finetune(settings, out)
        finetune(settings, out, resume=True)
        assert contents(out) == whole, count
    finetune(settings, out, resume=True)
    assert contents(out) == whole


def test_a_run_killed_with_two_threads_goes_on_with_two(run_command, tmp_path, dataset, tiny_finetuning):
    settings = ["finetune", "--dataset", dataset, *tiny_finetuning, *as_options("training.steps=12")]
    killed = spawn(*settings, "--out", tmp_path / "killed", threads=2)
    wait_for(tmp_path / "killed" / "checkpoints" / "last.pt", killed)
    killed.kill()
    killed.communicate()
    whole = spawn(*settings, "--out", tmp_path / "whole", threads=2)
    assert whole.wait(timeout=300) == 0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = run_command(*settings, "--out", tmp_path / "killed", "--resume")
    finally:
        torch.set_num_threads(before)
    assert done.status == 0
    assert "going on with 2 threads, as the run began, instead of 1" in done.err
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_folder_is_for_one_process(run_command, tmp_path, dataset, tiny_finetuning):
    out = tmp_path / "run"
    command = ["finetune", "--dataset", dataset, "--out", out, *tiny_finetuning]
    process = spawn(*command, *ENDLESS)
    wait_for(out / "checkpoints" / "last.pt", process)
    for more in ([], ["--twin"], ["--fold", "all"]):
        done = run_command(*command, *ENDLESS, "--resume", *more)
        assert done.status == 1
        assert done.error == (
            f"Error: Another misfm works in {out}: wait until it ends, or choose another --out."
        )
    process.kill()
    process.communicate()
    assert (out / "run.lock").exists()
    assert run_command(*command, *ENDLESS[:-2], "--resume").status == 2  # other settings, and no lock


def test_a_lock_that_a_kill_left_is_no_content(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("run.lock", ".config.yaml.0123abcd.tmp", "plan.txt", CHECKSUMS):
        (tmp_path / "run" / name).write_text("{}")
    RunFolder(tmp_path / "run").refuse_taken(resume=False)


def test_a_folder_that_is_held_within_what_holds_it_is_ours(tmp_path):
    with exclusive(tmp_path / "a" / "b"), exclusive(tmp_path / "a" / ".." / "a" / "b"):
        assert (tmp_path / "a" / "b" / "run.lock").exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["config.yaml", "split.json", "environment.json"])
def test_a_flipped_bit_is_not_trained_on(run_command, tmp_path, dataset, finetuned, name):
    out = tmp_path / "run"
    shutil.copytree(finetuned, out)
    content = (out / name).read_bytes()
    for place in (len(content) // 3, len(content) // 2):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (out / name).write_bytes(bytes(damaged))
        done = run_command(
            *("finetune", "--dataset", dataset, "--out", out, "--resume", "--weights", "none"),
            *(
                "--set",
                "network={name: unet, options: {channels: [4, 8]}}",
                "--set",
                "patch_size=[16, 16, 16]",
            ),
            *("--set", "training.steps=30", "--set", "training.validate_every=30", "--set", "batch_size=2"),
            *("--set", "training.log_every=2", "--set", "training.checkpoint_every=2"),
        )
        assert done.status == 1
        assert f"{out / name} is not as misfm wrote it" in done.error


def test_scores_that_are_read_back_have_a_checksum(tmp_path):
    scores = {"cases": {}, "mean": {"all": {"dice": 0.5}}}
    for name in (folds.SCORES, arm.SCORES):
        write_checked_json(tmp_path / name, scores)
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("0.5", "0.7"))
        with pytest.raises(DataError, match="is not as misfm wrote it"):
            arm.read_arm("arm", tmp_path, 0, name)


def test_paths_may_be_written_differently_on_resuming(
    run_command, tmp_path, dataset, monkeypatch, tiny_finetuning
):
    monkeypatch.chdir(dataset.parent)
    command = ["--out", tmp_path / "run", *tiny_finetuning]
    assert run_command("finetune", "--dataset", "dataset", *command).status == 0
    assert run_command("finetune", "--dataset", dataset, *command, "--resume").status == 0
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)
    done = run_command("finetune", "--dataset", moved, *command, "--resume")
    assert done.status == 2
    assert "dataset was dataset, now" in done.error


def test_the_licence_names_no_path(run_command, tmp_path, dataset, finetuned, tiny_finetuning):
    out, more = tmp_path / "run", as_options("allow_overlap=true")
    more += ["--weights", finetuned]
    command = ["finetune", "--dataset", dataset, "--out", out, *tiny_finetuning, *more]
    assert run_command(*command).status == 0
    described = json.loads(run_command("info", out / "weights.safetensors", "--json").out)
    assert described["licence"] == "starts from other weights: unknown"
    assert str(tmp_path).encode() not in (out / "weights.safetensors").read_bytes()
