"""``misfm info STORE --check`` reads everything and tells every fault; no training goes on with damage."""

import shutil

import pytest

from misfm.data.store import Store


@pytest.fixture
def copied(store, tmp_path):
    """The scans as a store of this test alone."""
    return shutil.copytree(store, tmp_path / "store")


def file_of(store, place=0):
    return store / "volumes" / f"{Store.open(store).records()[place].id}.b2nd"


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_whole_store(copied, run_command):
    done = run_command("info", copied, "--check", "--json")
    assert done.status == 0
    assert done.result == {"kind": "store", "whole": True, "faults": []}
    shown = run_command("info", copied, "--check").out.split()
    assert shown == ["kind", "store", "whole", "true", "faults", "[]"]


def test_every_fault_is_told(copied, run_command):
    flip(file_of(copied), 5000)
    file_of(copied, 1).unlink()
    done = run_command("info", copied, "--check", "--json")
    assert done.status == 1
    assert not done.result["whole"]
    first, second = done.result["faults"]
    assert f"{file_of(copied)} is damaged: its checksum differs; run again what made the store" in first
    assert f"{file_of(copied, 1)} is missing" in second
    shown = run_command("info", copied, "--check")
    assert shown.status == 1
    assert first in shown.out
    assert second in shown.out


def test_damage_to_settings_and_index_is_told_too(copied, run_command):
    index = (copied / "index.sqlite").read_bytes()
    (copied / "index.sqlite").write_bytes(index[: len(index) // 2])
    done = run_command("info", copied, "--check", "--json")
    assert done.status == 1
    assert "index.sqlite is damaged" in done.result["faults"][0]
    flip(copied / "store.json", 30)
    done = run_command("info", copied, "--check", "--json")
    assert done.status == 1
    assert "store.json is damaged" in done.result["faults"][0]


def test_what_is_no_store_cannot_be_checked(tmp_path, run_command):
    for path in (tmp_path, tmp_path / "nowhere"):
        done = run_command("info", path, "--check")
        assert done.status == 2
        assert (
            done.error
            == f"Error: --check is for a store or a dataset, and {path} is none; give the folder of one."
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_ends_with_one_sentence(copied, tmp_path, run_command, workers):
    for place in range(len(Store.open(copied).records())):
        flip(file_of(copied, place), 5000)
    options = ("--recipe", "small", "--steps", 2, "--patch-size", "32,32,32", "--batch-size", 2)
    workers = ("--set", f"training.num_workers={workers}")
    done = run_command("pretrain", "--store", copied, "--out", tmp_path / "run", *options, *workers)
    assert done.status == 1
    assert done.error.startswith(f"Error: {copied}/volumes/")
    assert done.error.endswith(".nii.gz.")
    assert "is damaged: its checksum differs; run again what made the store" in done.error
    assert "Caught" not in done.err


def test_reviewing_the_quarantine(phantom_dir, tmp_path, run_command):
    import nibabel as nib
    import numpy as np

    voxels = np.random.default_rng(0).integers(-900, 900, (8, 16, 32)).repeat(5, axis=0)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), tmp_path / "scans" / "odd.nii.gz")
    (tmp_path / "scans" / "cut.nii.gz").write_bytes(b"nothing")
    store, arguments = tmp_path / "s", (tmp_path / "scans", "--store", tmp_path / "s")
    assert run_command("ingest", *arguments).status == 1  # nothing was added
    cut, odd = run_command("info", store, "--quarantine", "--json").result["scans"]
    assert (odd["is_judgement"], odd["shape"], odd["released"]) == (True, [32, 16, 40], None)
    assert (cut["is_judgement"], "shape" in cut) == (False, False)
    shown = run_command("info", store, "--quarantine").out
    assert str(tmp_path / "scans" / "odd.nii.gz") in shown
    assert "looks like a label map" in shown

    assert run_command("info", store, "--release", "cut.nii.gz").status == 1
    assert run_command("info", store, "--release", "nobody").status == 2
    assert run_command("info", store, "--release", "odd.nii.gz", "--check").status == 2
    done = run_command("info", store, "--release", "odd.nii.gz", "--json")
    assert done.status == 0
    assert (
        run_command("info", store, "--quarantine", "--json").result["scans"][1]["released"]
        == done.result["when"]
    )
    assert run_command("ingest", *arguments, "--json").result["added"] == 1
    found = run_command("info", store, "--json").result
    assert [one["source"] for one in found["released"]] == [str(tmp_path / "scans" / "odd.nii.gz")]
    assert len(found["quarantined"]) == 1
