"""The probe during pretraining: few-label fine-tunings that judge, stop and keep the best weights."""

import json

import pytest
import torch

from misfm.commands import probe as module
from misfm.commands.pretrain import pretrain
from misfm.errors import ConfigError
from misfm.training.checkpoint import load_checkpoint
from misfm.training.run import RunFolder
from misfm.weights.file import read


@pytest.fixture
def settings(pretrain_settings, dataset):
    def build(*assignments):
        probe = f"probe={{dataset: {json.dumps(str(dataset))}, cases: 1, steps: 2}}"
        return pretrain_settings(probe, "training.validate_every=2", "training.steps=6", *assignments)

    return build


def probes(run):
    return [(row["step"], row["probe_dice"]) for row in run.read_metrics() if "probe_dice" in row]


def test_every_validation_probes_and_the_best_weights_are_kept(settings, tmp_path, monkeypatch):
    answers = iter([0.2, 0.5, 0.3])
    original = module.finetune

    def scripted(*arguments, **options):
        scores = original(*arguments, **options)
        scores["mean"]["all"]["dice"] = next(answers)
        return scores

    monkeypatch.setattr(module, "finetune", scripted)
    result = pretrain(settings(), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert probes(run) == [(2, 0.2), (4, 0.5), (6, 0.3)]
    assert result.keys() >= {"validation_loss", "probe_dice"}
    assert load_checkpoint(run.best).step == 4
    kept, info = read(run.weights)
    assert info.steps == 4
    best = load_checkpoint(run.best).model
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert {path.name for path in (run.path / "probe" / "step-4").iterdir()} >= {"validation.json", "log.txt"}
    assert "step 2/2" not in (run.path / "log.txt").read_text()
    assert RunFolder(run.path / "probe" / "step-4").read_settings()["select"] is False


def test_patience_ends_the_pretraining(settings, tmp_path, monkeypatch):
    answers = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(module, "finetune", lambda *a, **k: {"mean": {"all": {"dice": next(answers)}}})
    pretrain(settings("probe.patience=1"), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert [step for step, _ in probes(run)] == [2, 4]
    assert load_checkpoint(run.last).step == 4


def test_probing_changes_nothing_about_the_training(settings, pretrain_settings, tmp_path):
    pretrain(settings(), tmp_path / "probed")
    pretrain(pretrain_settings("training.validate_every=2", "training.steps=6"), tmp_path / "plain")
    probed, plain = (load_checkpoint(RunFolder(tmp_path / name).last).model for name in ("probed", "plain"))
    assert all(torch.equal(probed[name], plain[name]) for name in plain)


def test_patience_of_no_probe_at_all_is_refused(settings):
    with pytest.raises(ConfigError, match=r"probe\.patience"):
        settings("probe.patience=0")


def test_the_probe_transfers_what_was_trained_to_the_network_that_was(settings, tmp_path):
    from misfm.commands.probe import plan_probe

    for name, transfer in (("simclr", "encoder"), ("misfm", "all")):
        chosen = settings(f"pretext={{name: {name}}}")
        fine = plan_probe(chosen, RunFolder(tmp_path), ()).settings
        assert (fine.transfer, fine.network) == (transfer, chosen.network)
