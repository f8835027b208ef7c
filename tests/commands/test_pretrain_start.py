"""A pretraining that starts from weights: backbone taken, head fresh, the scans they have seen recorded."""

import pytest
import torch

from misfm.commands.pretrain import chance_notice, pretrain
from misfm.errors import WeightsError
from misfm.weights import describe
from misfm.weights.file import read


def weights_of(run):
    return read(run / "weights.safetensors")


def test_it_goes_on_from_the_backbone_and_keeps_the_scans_they_have_seen(
    pretrained, pretrain_settings, tmp_path
):
    still = ["training.optimizer.lr=1e-9", "training.optimizer.weight_decay=0"]
    pretrain(pretrain_settings(f"weights={pretrained}", "seed=1", *still), tmp_path / "on")
    (before, first), (after, second) = weights_of(pretrained), weights_of(tmp_path / "on")
    backbone = [name for name in before if name.startswith("backbone.")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in backbone)
    assert any(not torch.equal(before[name], after[name]) for name in before if name not in backbone)
    assert set(first.data.scans) <= set(second.data.scans)
    assert second.licence == "starts from other weights: unknown"
    assert "parameters come from" in (tmp_path / "on" / "transfer.txt").read_text()


def test_the_command_takes_the_network_of_the_weights(
    run_command, finetuned, store, tiny_pretraining, tmp_path
):
    settings = [part for part in tiny_pretraining if part != "--set" and "network" not in part]
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "on"
    done = run_command("pretrain", "--store", store, "--weights", finetuned, "--out", out, *options)
    assert done.status == 0, done.err
    assert describe(out)["network"] == describe(finetuned)["network"]
    again = run_command(
        *("pretrain", "--store", store, "--weights", finetuned, "--out", out, *options, "--resume")
    )
    assert again.status == 0, again.err


def test_none_is_scratch(run_command, store, tiny_pretraining, pretrained, tmp_path):
    options = ["--store", store, *tiny_pretraining, "--weights", "none", "--out", tmp_path / "run"]
    assert run_command("pretrain", *options).status == 0
    ours, theirs = weights_of(tmp_path / "run")[0], weights_of(pretrained)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_another_network_are_refused_before_anything_is_written(
    pretrained, pretrain_settings, tmp_path
):
    settings = pretrain_settings(f"weights={pretrained}", "network.options.channels=[5, 7]")
    with pytest.raises(WeightsError, match="create the network they were trained with"):
        pretrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pretext_that_was_not_learnt_is_said_with_what_to_do():
    result = {"validation_pretext_dice": 0.21, "validation_chance_dice": 0.2}
    notice = chance_notice(result, None)
    assert notice.startswith("pretext dice is 0.21, no better than chance (0.20)")
    assert "--weights builtin" in notice
    assert "--weights" not in chance_notice(result, "builtin")
    assert chance_notice({"validation_pretext_dice": 0.5, "validation_chance_dice": 0.2}, None) is None
    assert chance_notice({"validation_loss": 0.5}, None) is None
