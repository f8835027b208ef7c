"""The whole path through the command line: ingest, pretrain, finetune, predict, evaluate, info."""

import json

import nibabel as nib
import numpy as np
import pytest
import yaml

from misfm.weights import describe

RUN_FILES = {
    "config.yaml",
    "metrics.jsonl",
    "environment.json",
    "checkpoints",
    "weights.safetensors",
    "log.txt",
    "tensorboard",
    "checksums.json",
}


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_scans_to_pretrained_weights_to_masks_to_numbers(
    run_command, phantom_dir, tmp_path, tiny_pretraining, tiny_finetuning
):
    store, pretrained, out = tmp_path / "store", tmp_path / "pretrained", tmp_path / "finetuned"

    done = run_command(
        *("ingest", phantom_dir / "scans", "--store", store, "--spacing", "14,14,14"),
        *("--intensity", "ct:-200,600", "--json"),
    )
    assert done.status == 0
    assert done.result == {
        "store": str(store),
        "added": 4,
        "skipped": 0,
        "duplicates": 0,
        "quarantined": [],
        "repaired": [],
        "kinds": {"ct": 4},
        "doubtful": [],
    }

    done = run_command("pretrain", "--store", store, "--out", pretrained, *tiny_pretraining, "--json")
    assert done.status == 0
    assert done.result["weights"] == str(pretrained / "weights.safetensors")
    assert done.result["validation"].keys() >= {"validation_loss", "validation_pretext_dice"}
    assert names(pretrained) == RUN_FILES | {"volumes.json"}
    rows = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    assert rows[0].keys() >= {"step", "loss", "lr", "samples_per_s"}
    weights = describe(str(pretrained))
    assert (weights["pretext"], weights["spacing"]) == ("volume-fusion-v2", [14, 14, 14])

    done = run_command(
        *("finetune", "--dataset", phantom_dir / "dataset", "--out", out, "--weights", pretrained),
        *("--cases", "2", "--twin", *tiny_finetuning, "--json"),
    )
    assert done.status == 0
    assert done.result["verdict"].startswith("Mean Dice ")
    additions = {"validation.json", "chosen.json", "split.json", "dataset_fingerprint.json", "cases"}
    assert names(out) == RUN_FILES | additions | {"transfer.txt", "twin", "twin.json", "report.html"}
    assert names(out / "twin") == RUN_FILES | additions - {"cases"}  # its twin has them
    report = (out / "transfer.txt").read_text()
    assert "encoder.stem (2)" in report
    assert "reinitialised 4 tensors: head.levels (4)" in report
    assert (out / "split.json").read_text() == (out / "twin" / "split.json").read_text()
    assert len(json.loads((out / "split.json").read_text())["train"]) == 2
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (out, out / "twin"))
    assert ours.pop("weights") == str(pretrained)
    assert theirs.pop("weights") == "none"
    assert ours == theirs
    assert (ours["spacing"], ours["intensity"]) == ([14.0, 14.0, 14.0], "ct:-200,600")
    assert describe(str(out))["label_names"][:2] == ["background", "liver"]

    masks = tmp_path / "masks"
    images = phantom_dir / "dataset" / "imagesTs"
    done = run_command("predict", "--run", out, "--input", images, "--output", masks, "--json")
    assert done.status == 0
    assert done.result["failed"] == {}
    assert {path.name for path in masks.glob("*.nii.gz")} == {
        "phantom_ts_000.nii.gz",
        "phantom_ts_001.nii.gz",
    }
    listed = json.loads((masks / "predictions.json").read_text())["cases"]
    assert set(listed["phantom_ts_000"]["volume_ml"]) == {
        "liver",
        "left_kidney",
        "right_kidney",
        "spinal_cord",
        "aorta",
    }
    image, mask = (
        nib.load(path) for path in (images / "phantom_ts_000_0000.nii.gz", masks / "phantom_ts_000.nii.gz")
    )
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)

    done = run_command(
        *("evaluate", "--predictions", masks, "--references", phantom_dir / "dataset" / "labelsTs"),
        *("--out", tmp_path / "scores.json", "--json"),
    )
    assert done.status == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["cases"].keys() == {"phantom_ts_000", "phantom_ts_001"}
    assert scores["mean"] == done.result["mean"]
    assert scores["mean"]["all"].keys() >= {"dice", "hd95_mm", "assd_mm", "surface_dice"}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("store", {"kind": "store", "volumes": 4, "quarantined": []}),
        ("dataset", {"kind": "dataset", "training_cases": 4, "labelled_cases": 4, "test_cases": 2}),
        ("pretrained", {"kind": "run", "steps_done": 4, "finished": True}),
    ],
)
def test_info_says_what_a_path_is(run_command, request, which, expected):
    done = run_command("info", request.getfixturevalue(which), "--json")
    assert done.status == 0
    assert expected.items() <= done.result.items()
    assert expected["kind"] in run_command("info", request.getfixturevalue(which)).out


def test_info_reads_a_weights_file(run_command, pretrained):
    found = run_command("info", pretrained / "weights.safetensors", "--json").result
    assert (found["kind"], found["network"]["name"], found["steps"]) == ("weights", "unet", 4)
