"""Label maps and scores made on a Dask cluster, or in local processes, equal those made in one process."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import misfm


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a cluster of two workers, started by hand in a folder of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(misfm.__file__).parents[1])}
    quiet = {
        "cwd": folder,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    place = ("--scheduler-file", str(file))
    dask = (sys.executable, "-m", "distributed.cli.dask_scheduler")
    started = [subprocess.Popen([*dask, *place, "--port", "0", "--dashboard-address", ":0"], **quiet)]
    try:
        worker = (sys.executable, "-m", "distributed.cli.dask_worker")
        started += [
            subprocess.Popen([*worker, *place, "--nthreads", "1", "--no-dashboard"], **quiet)
            for _ in range(2)
        ]
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


@pytest.fixture
def weights(tmp_path):
    """A network that was never trained: it labels at random, but the same everywhere."""
    import torch

    from misfm.models import create
    from misfm.weights import NetworkInfo, WeightsInfo, save

    torch.manual_seed(0)
    options = {"channels": (4, 8)}
    info = WeightsInfo(
        network=NetworkInfo(name="unet", options=options),
        in_channels=1,
        num_classes=3,
        patch_size=(16, 16, 16),
        spacing=(15.0, 15.0, 15.0),
        intensity={"kind": "ct"},
        steps=0,
        data=None,
    )
    model = create("unet", num_classes=3, patch_size=(16, 16, 16), **options)
    save(tmp_path / "weights.safetensors", model, info)
    return tmp_path / "weights.safetensors"


def account(folder):
    """What is in a folder of label maps, and what its predictions.json says of the cases."""
    content = json.loads((folder / "predictions.json").read_text())
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".gz"}
    return files, content["cases"], content["failed"], content["weights"], content["made_with"]


@pytest.fixture
def inputs(tmp_path, dataset):
    """Scans, and one that is damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((dataset / "imagesTr").glob("*.nii.gz"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad_0000.nii.gz").write_bytes(b"no scan")
    return folder


def test_a_cluster_labels_and_scores_as_one_process_does(
    run_command, tmp_path, weights, inputs, scheduler, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # which is not where the workers are
    run = os.path.relpath(weights)
    commands = {
        "here": (),
        "there": ("--scheduler", scheduler),
        "workers": ("--workers", "2"),
    }
    for name, more in commands.items():
        done = run_command("predict", "--run", run, "--input", "in", "--output", name, *more, "--json")
        assert done.status == 1  # one is damaged
        assert len(done.result["written"]) == 3
        assert list(done.result["failed"]) == ["bad"]
    here, there, workers = (account(tmp_path / name) for name in commands)
    assert len(here[0]) == 3
    assert here == there == workers
    (tmp_path / "there" / next(iter(here[0]))).unlink()
    done = run_command(
        *("predict", "--run", run, "--input", "in", "--output", "there", "--scheduler", scheduler)
    )
    assert "2 label map(s) were there already" in done.err
    assert account(tmp_path / "there") == here

    shutil.copytree(tmp_path / "here", tmp_path / "references")
    scores = []
    for name, more in commands.items():
        out = tmp_path / f"{name}.json"
        score = ("evaluate", "--predictions", name, "--references", "references", "--out", out)
        assert run_command(*score, *more).status == 0
        scores.append(json.loads(out.read_text()))
    assert scores[0]["cases"].keys() == {name.partition(".")[0] for name in here[0]}
    assert scores[0] == scores[1] == scores[2]
