"""The skeletons of docs/extending.md work as they stand there."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import misfm
from misfm.data.readers import READERS
from misfm.registry import Registry
from misfm.weights.exports import EXPORTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"


def skeleton(section):
    """The Python block of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture
def extend(tmp_path, monkeypatch):
    """Import the block of a section as a module, whose entries a registry forgets after the test."""

    def add(section, registry: Registry):
        registry.names()  # so that all of its own are there
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        folder = tmp_path / "modules"
        folder.mkdir()
        name = f"skeleton_of_{section.split()[-1]}"
        (folder / f"{name}.py").write_text(skeleton(section))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)
        return importlib.import_module(name)

    return add


@pytest.fixture
def volumes(tmp_path):
    """A folder with two files of the new format, one of them damaged."""
    folder = tmp_path / "scans"
    folder.mkdir()
    grid = np.indices((20, 24, 28)).astype(float)
    body = ((grid - 12) ** 2).sum(0) < 90
    noise = np.random.default_rng(0).normal(0, 20, body.shape)
    voxels = np.where(body, 40 + noise, -1000).astype(np.int16)
    np.savez(folder / "good.npz", voxels=voxels, affine=np.diag([3.0, 2.0, 2.0, 1.0]))
    (folder / "bad.npz").write_bytes((folder / "good.npz").read_bytes()[:-50])
    return folder


def test_files_of_a_new_reader_are_read_found_and_ingested(extend, volumes, tmp_path, run_command):
    extend("A reader", READERS)
    volume = misfm.read_volume(volumes / "good.npz")
    assert (volume.shape, volume.spacing) == ((20, 24, 28), (3.0, 2.0, 2.0))
    with pytest.raises(misfm.DataError, match=r"bad\.npz cannot be read"):
        misfm.read_volume(volumes / "bad.npz")
    done = run_command("ingest", volumes, "--store", tmp_path / "store", "--json")
    assert done.result["added"] == 1
    assert [Path(one["source"]).name for one in done.result["quarantined"]] == ["bad.npz"]
    (record,) = misfm.Store.open(tmp_path / "store").records()
    assert record.case == "good"


def test_without_the_reader_they_are_no_scans(volumes):
    with pytest.raises(misfm.DataError, match=r"good\.npz is no scan misfm can read; give DICOM"):
        misfm.read_volume(volumes / "good.npz")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_new_export_format_is_written(extend, finetuned, tmp_path, run_command):
    extend("An export format", EXPORTS)
    out = tmp_path / "network.pt"
    done = run_command("export", finetuned, "--to", "torchscript", "--out", out, "--json")
    assert done.result["written"] == [str(out)]
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    model = misfm.from_pretrained(finetuned).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(out)(x), model(x))
