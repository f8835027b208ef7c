"""Fine-tuning that also learns from unlabelled scans: the store has to fit; the run is one like any other."""

import json

import pytest
from safetensors.torch import load_file

from misfm.commands.unlabelled import unlabelled_patches
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.errors import ConfigError
from misfm.planning.fill_defaults import fill_defaults

FITTING = ["spacing=[14, 14, 14]", "intensity='ct:-200,600'"]


def opened(dataset, settings):
    dataset = Dataset.open(dataset)
    return unlabelled_patches(fill_defaults(settings, DatasetFingerprint(dataset), 1).settings, dataset)


def test_off_by_default(dataset, finetune_settings):
    assert opened(dataset, finetune_settings()) is None


def test_a_fitting_store_gives_single_patches(dataset, finetune_settings, store):
    patches = opened(dataset, finetune_settings(*FITTING, f"unlabelled.store={store}"))
    images, *_ = patches[0]
    assert images.shape == (2, 1, 1, 16, 16, 16)


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("spacing=[10, 14, 14]", "--spacing 10,14,14 --intensity ct:-200,600`"),
        ("spacing=native", "--spacing native --intensity ct:-200,600`"),
        ("intensity=ct", "--spacing 14,14,14 --intensity ct`"),
    ],
)
def test_another_store_is_refused_with_the_command_that_makes_one(
    dataset, finetune_settings, store, assignment, wanted
):
    settings = finetune_settings(*FITTING, assignment, f"unlabelled.store={store}")
    with pytest.raises(ConfigError, match="does not fit the fine-tuning") as refusal:
        opened(dataset, settings)
    assert f"misfm ingest SCANS --store DIR {wanted}" in str(refusal.value)


def test_a_store_that_detects_fits_if_all_it_found_is_of_the_kind(
    dataset, finetune_settings, scans, tmp_path
):
    ingest([scans], tmp_path / "auto", IngestSettings(spacing=(14.0, 14.0, 14.0), intensity="auto"))
    option = f"unlabelled.store={tmp_path / 'auto'}"
    assert opened(dataset, finetune_settings(FITTING[0], "intensity=ct", option)) is not None
    with pytest.raises(ConfigError, match="does not fit"):
        opened(dataset, finetune_settings(*FITTING, option))


def test_no_store_leaves_no_run_folder(run_command, dataset, tmp_path, tiny_finetuning):
    command = ["finetune", "--dataset", dataset, "--out", tmp_path / "run", *tiny_finetuning]
    done = run_command(*command, "--unlabelled", tmp_path / "nowhere")
    assert done.status == 1
    assert "is not a store" in done.error
    assert not (tmp_path / "run").exists()


def test_a_run_learns_from_both_and_keeps_an_ordinary_network(
    run_command, dataset, store, tmp_path, tiny_finetuning
):
    command = ["finetune", "--dataset", dataset, *tiny_finetuning, "--set", FITTING[0], "--set", FITTING[1]]
    assert run_command(*command, "--out", tmp_path / "both", "--unlabelled", store).status == 0
    assert run_command(*command, "--out", tmp_path / "labelled").status == 0
    rows = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["consistency"] >= 0 and row["consistency_weight"] > 0 for row in rows)
    both, alone = (load_file(tmp_path / run / "weights.safetensors") for run in ("both", "labelled"))
    assert both.keys() == alone.keys()
    scan = dataset / "imagesTs" / "phantom_ts_000_0000.nii.gz"
    done = run_command("predict", "--run", tmp_path / "both", "--input", scan, "--output", tmp_path / "masks")
    assert done.status == 0
