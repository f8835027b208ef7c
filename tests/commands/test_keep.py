"""A fine-tuning ends no worse than it was, says what it kept, and prediction follows."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

import misfm
import misfm.training.loop as loop
from misfm.commands.export import export
from misfm.commands.finetune import finetune
from misfm.data.readers import read_volume
from misfm.inference.largest_part import keep_largest_parts
from misfm.inference.load import load_predictor
from misfm.training.checkpoint import load_checkpoint
from misfm.training.run import RunFolder
from misfm.weights import WeightsInfo
from misfm.weights.file import read, write

LAST, BEST = 40, 30
LONG = (f"training.steps={LAST}", "training.validate_every=10", "training.checkpoint_every=10")


def chosen(run):
    return json.loads((run / "chosen.json").read_text())


@pytest.fixture
def spoilt(monkeypatch):
    """Training loses everything after step 30: all is background."""
    original = loop.train_step

    def step(session, *arguments, **options):
        report = original(session, *arguments, **options)
        if session.state.step >= BEST:
            networks = [session.model] if session.average is None else [session.model, session.average.values]
            for network in networks:
                tensors = network.values() if isinstance(network, dict) else network.parameters()
                for tensor in tensors:
                    tensor.data.zero_()
        return report

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("training.ema=0.5",),
        ("unlabelled={store: STORE}", "spacing=[14, 14, 14]", "intensity='ct:-200,600'"),
    ],
    ids=["plain", "average", "teacher"],
)
@pytest.mark.usefixtures("spoilt")
def test_the_best_weights_are_kept_where_the_last_are_worse(
    tmp_path, finetune_settings, store, caplog, options
):
    caplog.set_level(logging.INFO, "misfm")
    settings = finetune_settings(*LONG, *(option.replace("STORE", str(store)) for option in options))
    run = RunFolder(tmp_path / "run")
    scores = finetune(settings, run.path)
    found, best = chosen(run.path), load_checkpoint(run.best)
    assert (found["kept"], found["step"]) == ("best", best.step)
    assert best.step <= BEST
    assert found["candidates"]["last"]["step"] == LAST
    assert found["candidates"]["last"]["dice"] == 0
    assert found["candidates"]["best"]["dice"] == scores["mean"]["all"]["dice"] > 0
    assert json.loads((run.path / "validation.json").read_text()) == scores
    tensors, info = read(run.weights)
    assert (info.kept, info.steps) == ("best", best.step)
    prefix = "student." if "unlabelled" in settings.model_fields_set and settings.unlabelled else ""
    assert all(torch.equal(tensors[name], best.model[prefix + name]) for name in tensors)
    assert f"kept the best weights, of step {best.step}: validation Dice " in caplog.text
    # What a kill before the end left is chosen from in the same way.
    before = run.weights.read_bytes()
    for name in ("weights.safetensors", "validation.json", "chosen.json"):
        (run.path / name).unlink()
    assert finetune(settings, run.path, resume=True) == scores
    assert chosen(run.path) == found
    assert run.weights.read_bytes() == before


@pytest.mark.usefixtures("spoilt")
def test_the_choice_can_be_switched_off(tmp_path, finetune_settings, caplog):
    caplog.set_level(logging.INFO, "misfm")
    finetune(finetune_settings(*LONG, "select=false"), tmp_path / "run")
    tensors, info = read(tmp_path / "run" / "weights.safetensors")
    assert not any(tensor.any() for tensor in tensors.values())
    assert (info.kept, info.largest_part, info.steps) == (None, (), LAST)
    assert "kept the last weights as they are: 'select' is off" in caplog.text
    assert chosen(tmp_path / "run").items() >= {"kept": "last", "step": LAST}.items()


def test_without_validation_cases_the_last_weights_are_kept_and_that_is_said(
    tmp_path, finetune_settings, caplog
):
    caplog.set_level(logging.INFO, "misfm")
    names = ",".join(f"phantom_tr_{number:03d}" for number in range(4))
    finetune(finetune_settings(f"cases=[{names}]", "training.steps=1"), tmp_path / "run")
    reason = "there are no validation cases to choose on"
    assert f"kept the last weights as they are: {reason}" in caplog.text
    assert chosen(tmp_path / "run")["reason"] == reason
    assert read(tmp_path / "run" / "weights.safetensors")[1].kept is None


@pytest.fixture
def scan(dataset):
    return read_volume(next((dataset / "imagesTs").iterdir()))


@pytest.fixture
def cleaning(finetuned, tmp_path):
    """Write the weights of a run, into a run folder, as if labels had been chosen to be cleaned up."""
    tensors, info = read(finetuned / "weights.safetensors")

    def build(*labels):
        folder = tmp_path / "-".join(["run", *map(str, labels)])
        path = folder / "weights.safetensors"
        write(path, tensors, info.model_copy(update={"largest_part": labels}))
        return folder

    return build


def cleaned(label_map, labels):
    voxels = label_map.data[0].copy()
    changed = keep_largest_parts(voxels, labels)
    return voxels, changed


def test_prediction_does_the_recorded_clean_up(cleaning, scan, finetuned, caplog):
    caplog.set_level(logging.INFO, "misfm")
    plain = misfm.predict(cleaning(), scan)
    labels = np.unique(plain.data)[1:].tolist()
    expected, changed = cleaned(plain, labels)
    assert changed, "the network of the fixture makes no speck"
    caplog.clear()
    run = cleaning(*labels)
    for source in (run, run / "weights.safetensors", [str(run), run]):
        assert np.array_equal(misfm.predict(source, scan).data[0], expected)
    assert "largest part only, as the weights say: " in caplog.text
    assert json.dumps(misfm.weights.describe(run)["largest_part"]) == json.dumps(labels)


def test_several_clean_the_labels_that_each_of_them_cleans(cleaning, tmp_path):
    for number, labels in enumerate([(1, 2), (2, 3), (2,)]):
        cleaning(*labels).rename(tmp_path / f"fold_{number}")
    assert load_predictor(tmp_path).largest_part == (2,)
    assert load_predictor([tmp_path / "fold_0", cleaning()]).largest_part == ()


def test_weights_from_before_there_was_a_clean_up_predict_as_ever(cleaning, tmp_path, scan):
    run = cleaning(1)
    with safe_open(run / "weights.safetensors", "pt") as file:
        fields = json.loads(file.metadata()["misfm"])
    older = {name: value for name, value in fields.items() if name not in ("kept", "largest_part")}
    tensors = load_file(run / "weights.safetensors")
    save_file(tensors, tmp_path / "older.safetensors", {"misfm": json.dumps(older)})
    assert read(tmp_path / "older.safetensors")[1] == WeightsInfo(**older)
    assert load_predictor(tmp_path / "older.safetensors").largest_part == ()
    expected = misfm.predict(cleaning(), scan).data
    assert np.array_equal(misfm.predict(tmp_path / "older.safetensors", scan).data, expected)


def test_info_names_the_labels_and_our_own_file_holds_them(cleaning, run_command, tmp_path):
    run = cleaning(1, 2)
    names = read(run / "weights.safetensors")[1].label_names[1:3]
    described = json.loads(run_command("info", run / "weights.safetensors", "--json").out)
    assert described["largest_part"] == list(names)
    copied = export(run, "safetensors", tmp_path / "copy.safetensors")
    assert not any("largest" in note for note in copied["notes"])
    assert read(tmp_path / "copy.safetensors")[1].largest_part == (1, 2)


def test_what_was_chosen_cleans_the_validation_cases(tmp_path, finetuned, dataset):
    """validation.json of a run is of its weights with its clean-up; see also test_finetune."""
    found, info = chosen(finetuned), read(finetuned / "weights.safetensors")[1]
    assert found["kept"] == info.kept == "last"
    assert found["largest_part"] == info.largest_part_names
    scores = json.loads((finetuned / "validation.json").read_text())
    assert scores["mean"]["all"]["dice"] == found["candidates"]["last"]["dice"]
    for label, numbers in found["candidates"]["last"]["labels_in_one_piece"].items():
        key = "dice_of_largest_part" if numbers["largest_part"] else "dice"
        assert scores["mean"][label]["dice"] == numbers[key]
        better = (numbers["dice_of_largest_part"] or 0) > (numbers["dice"] or 0)
        assert numbers["largest_part"] == better
