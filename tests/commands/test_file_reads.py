"""Weights are opened once a command, and each image is read once for plan, leaks and ingest together.

Validation cases are read a second time, to be scored as a user would: on their own grids, at the end.
"""

import json
import shutil
import sys
from collections import Counter
from contextlib import contextmanager

import pytest

TRAIN, VAL, TEST = (
    ("phantom_tr_000", "phantom_tr_002"),
    ("phantom_tr_001", "phantom_tr_003"),
    ("phantom_ts_000",),
)
OPEN = ["--set", "spacing=null", "--set", "patch_size=null", "--set", "batch_size=null"]

watchers = []
sys.addaudithook(lambda event, args: [watch(args[0]) for watch in watchers if event == "open"])


@contextmanager
def counted():
    """Count how often each path is opened by this process."""
    counts = Counter()
    watchers.append(lambda path: counts.update([str(path)]))
    try:
        yield counts
    finally:
        watchers.clear()


@pytest.fixture
def folder(dataset, tmp_path):
    """A dataset that divides its four training cases."""
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    parts = [{"train": TRAIN, "val": VAL}, {"train": VAL, "val": TRAIN}]
    (folder / "splits_final.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def weights(pretrained, tmp_path):
    return shutil.copy(pretrained / "weights.safetensors", tmp_path / "start.safetensors")


def reads(counts, folder, cases):
    return {counts[str(path)] for case in cases for path in folder.glob(f"images*/{case}_0000.nii.gz")}


@pytest.fixture
def command(run_command, folder, weights, tiny_finetuning, tmp_path):
    """Run a fine-tuning that plans for itself; return how often files were opened."""

    def run(*options):
        with counted() as counts:
            done = run_command(
                *("finetune", "--dataset", folder, "--weights", weights, "--out", tmp_path / "run"),
                *(*tiny_finetuning, *OPEN, *options),
            )
        assert done.status == 0, done.err
        return counts

    return run


def test_a_fine_tuning(command, folder, weights):
    counts = command()
    assert counts[str(weights)] == 1
    assert reads(counts, folder, TRAIN) == {1}
    assert reads(counts, folder, VAL) == {2}
    assert reads(counts, folder, TEST) == {1}


def test_twins_share_what_was_read(command, folder, weights):
    counts = command("--twin")
    assert counts[str(weights)] == 1
    assert reads(counts, folder, TRAIN) == reads(counts, folder, TEST) == {1}
    assert reads(counts, folder, VAL) == {3}


def test_folds_share_what_was_read(command, folder, weights):
    counts = command("--fold", "all")
    assert counts[str(weights)] == 1
    assert reads(counts, folder, TRAIN) == reads(counts, folder, VAL) == {2}
    assert reads(counts, folder, TEST) == {1}


def test_arms_of_a_comparison_share_what_was_read(run_command, folder, store, tmp_path):
    with counted() as counts:
        done = run_command(
            *("compare", "--store", store, "--dataset", folder, "--recipes", "mae", "--cases", "2"),
            *("--seeds", "0", "--out", tmp_path / "compare", "--set-pretrain", "training.steps=2"),
            *("--set-pretrain", "patch_size=[16,16,16]", "--set-pretrain", "network.options.channels=[4,8]"),
            *("--set-finetune", "training.steps=2"),
        )
    assert done.status == 0, done.err
    assert counts[str(tmp_path / "compare" / "unet-mae" / "weights.safetensors")] == 1
    assert reads(counts, folder, TRAIN) == {1}
    assert reads(counts, folder, VAL) == {3}  # scored by two arms
    assert reads(counts, folder, TEST) == {3}  # predicted by two arms


def test_what_can_be_refused_is_refused_before_an_image_is_read(run_command, folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    for options in (
        ["--out", tmp_path / "run"],
        ["--out", tmp_path / "new", "--weights", "nowhere.pt"],
        ["--out", tmp_path / "new", "--network", "unett"],
    ):
        with counted() as counts:
            done = run_command("finetune", "--dataset", folder, *options)
        assert done.status in (1, 2)
        assert reads(counts, folder, (*TRAIN, *VAL, *TEST)) == {0}


def test_what_cannot_be_built_is_refused_before_anything_is_generated(run_command, tmp_path):
    for options in (["--network", "unett"], ["--network", "pctnet", "--patch-size", "30,30,30"]):
        done = run_command("pretrain", "--store", "phantom:4", "--out", tmp_path / "run", *options)
        assert done.status == 2
        assert list(tmp_path.iterdir()) == []
