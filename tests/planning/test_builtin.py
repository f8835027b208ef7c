"""What a fine-tuning starts from that is given no weights: those that ship where they fit, else scratch."""

import json
from pathlib import Path

import pytest
import yaml

import misfm.weights
from misfm.commands import start as module
from misfm.commands.finetune import finetune
from misfm.commands.start import choose_start
from misfm.commands.twins import finetune_twins
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.dataset import Dataset
from misfm.errors import ConfigError
from misfm.planning.builtin import plan_weights
from misfm.planning.machine import Machine
from misfm.resolve import resolve
from misfm.training.run import RunFolder
from misfm.weights.source import open_source

CPU = Machine("cpu")
LEAN = "network={name: unet, options: {channels: [16, 32, 64, 128, 128]}}"


@pytest.fixture(scope="module")
def builtin():
    return open_source("builtin")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "present_machine", lambda: CPU)


def settings(**chosen):
    return FinetuneSettings(recipe="small", dataset="d", **chosen)


def network(name="unet", **options):
    return {"name": name, "options": options}


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"network": network()},
        {"network": network(channels=(16, 32, 64, 128, 128))},
        {"network": network(strides=[[2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]])},
        {"patch_size": (16, 32, 40)},
        {"transfer": "encoder"},
    ],
)
def test_weights_that_ship_are_started_from_where_they_fit(builtin, chosen):
    source, reason = plan_weights(settings(**chosen), 1, CPU, builtin)
    assert source == "builtin"
    assert reason.startswith("weights builtin: ")
    assert reason.endswith("--weights none starts from scratch")


@pytest.mark.parametrize(
    ("chosen", "channels", "machine", "why"),
    [
        ({}, 2, CPU, "builtin take 1 channel and the images have 2"),
        ({}, 1, Machine("cuda", 2**36), "--weights builtin starts from them"),
        ({"network": network("pctnet")}, 1, CPU, "builtin are of unet, and pctnet is given"),
        ({"network": network(channels=[4, 8])}, 1, CPU, "builtin have other channels than the [4, 8]"),
        ({"network": network(strides=[[1, 2, 2]] * 4)}, 1, CPU, "builtin have other strides"),
        ({"network": network(foo=1)}, 1, CPU, "builtin have other foo"),
        ({"patch_size": (20, 80, 80)}, 1, CPU, "multiples of 8, and 20,80,80 is given"),
    ],
)
def test_elsewhere_scratch_is_and_the_reason_says_why(builtin, chosen, channels, machine, why):
    source, reason = plan_weights(settings(**chosen), channels, machine, builtin)
    assert source == "none"
    assert reason.startswith("weights none: ")
    assert why in reason


@pytest.mark.parametrize("recipe", ["mis-fm-2023", "volf-2025", "openmind-mae", "openmind-mae-primus"])
def test_recipes_of_papers_stay_from_scratch(dataset, recipe):
    fine = resolve(FinetuneSettings, recipe=recipe, options={"dataset": str(dataset)})
    start = choose_start(fine, Dataset.open(dataset))
    assert (start.settings.weights, start.weights) == ("none", None)


def test_none_is_a_choice_and_null_is_none_in_fine_tuning_only(dataset):
    fine = resolve(FinetuneSettings, recipe="small", options={"dataset": str(dataset), "weights": "none"})
    start = choose_start(fine, Dataset.open(dataset))
    assert (start.settings.weights, start.weights, start.reasons) == ("none", None, ())
    assert resolve(FinetuneSettings, recipe="small", options={"dataset": "d"}).weights is None
    assert (
        resolve(PretrainSettings, recipe="small", options={"store": "s", "weights": "none"}).weights is None
    )


def saved(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def test_the_choice_is_logged_kept_and_recalled(tmp_path, finetune_settings, caplog, monkeypatch):
    caplog.set_level("INFO", logger="misfm")
    out, chosen = tmp_path / "run", finetune_settings(LEAN, "training.steps=1")
    finetune(chosen, out)
    assert caplog.text.count("weights builtin: ") == 1
    assert (out / "plan.txt").read_text().startswith("weights builtin: ")
    assert saved(out)["weights"] == "builtin"
    assert (out / "transfer.txt").exists()
    assert misfm.weights.describe(out)["licence"].startswith("starts from builtin: Apache-2.0")
    monkeypatch.setattr(module, "present_machine", lambda: Machine("cuda", 2**36))
    finetune(chosen, out, resume=True)
    assert saved(out)["weights"] == "builtin"
    assert caplog.text.count("weights builtin: ") == 1
    with pytest.raises(ConfigError, match="weights was builtin, now none"):
        finetune(finetune_settings(LEAN, "training.steps=1", "weights=none"), out, resume=True)


def test_runs_from_before_there_was_a_choice_go_on_from_scratch(tmp_path, finetune_settings):
    out, chosen = tmp_path / "run", finetune_settings(LEAN, "training.steps=1")
    finetune(finetune_settings(LEAN, "training.steps=1", "weights=none"), out)
    kept = {**saved(out), "weights": None}
    (out / "config.yaml").write_text(yaml.safe_dump(kept))
    (out / "checksums.json").unlink()  # of which there were none
    (out / "checkpoints" / "last.pt").unlink()  # as if it had been stopped before the first checkpoint
    finetune(chosen, out, resume=True)
    assert saved(out)["weights"] is None
    assert not (out / "transfer.txt").exists()
    RunFolder(out).require(finetune_settings(LEAN, "training.steps=1", "weights=none"))


def test_twins_compare_what_ships_with_scratch_and_open_it_once(tmp_path, finetune_settings, monkeypatch):
    opened = []
    monkeypatch.setattr(module, "open_source", lambda source: opened.append(source) or open_source(source))
    finetune_twins(finetune_settings(LEAN, "training.steps=1"), tmp_path / "run")
    assert opened == ["builtin"]
    assert [saved(tmp_path / run)["weights"] for run in ("run", "run/twin")] == ["builtin", "none"]
    assert (tmp_path / "run" / "plan.txt").read_text().count("weights builtin: ") == 1
    result = json.loads((tmp_path / "run" / "twin.json").read_text())
    assert result["curves"].keys() == {"pretrained", "scratch"}
    assert "builtin" in Path(tmp_path / "run" / "report.html").read_text()


def test_twins_end_by_themselves_and_say_after_how_many_steps(tmp_path, finetune_settings, monkeypatch):
    """Scripted validations: the twin from scratch has its best one first, the other is better and better."""
    from misfm.evaluation.validation import DiceValidation

    seen = []

    def judge(self, model, step):
        seen.append(step)
        rising = len(seen) <= 10  # the first run
        return {"validation_dice": step / 100 if rising else 0.2}

    monkeypatch.setattr(DiceValidation, "__call__", judge)
    short = ("training.steps=20", "training.validate_every=2", "training.patience=2")
    result = finetune_twins(finetune_settings(LEAN, *short), tmp_path / "run")
    assert result["steps"] == {"scratch": 8, "pretrained": 20}  # best at 2, patience until 6, cooldown of 2
    assert "Steps taken: 8 scratch, 20 pretrained." in result["verdict"]
    taken = [misfm.weights.describe(tmp_path / run)["steps"] for run in ("run", "run/twin")]
    assert taken == [20, 8]
