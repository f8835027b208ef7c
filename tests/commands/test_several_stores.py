"""Pretraining on several stores: one list of what the weights have seen, draws by the weights asked for."""

import shutil

import pytest

from misfm.commands.pretrain import pretrain
from misfm.data.fingerprint import short_fingerprint
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.weights import describe


@pytest.fixture
def halves(store, tmp_path):
    """Two stores, each with two of four volumes."""
    for name, left_out in (("first", slice(2, 4)), ("second", slice(0, 2))):
        shutil.copytree(store, tmp_path / name)
        half = Store.open(tmp_path / name)
        for source in half.records().sources[left_out]:
            half.quarantine(source, "left out")
    return tmp_path / "first", tmp_path / "second"


def test_weights_tell_of_the_scans_of_all_stores(run_command, halves, tiny_pretraining, tmp_path):
    first, second = halves
    options = ["--store", first, "--store", second, *tiny_pretraining, "--out", tmp_path / "run"]
    sampling = ["--set", "sampling={by: store, weights: {first: 1, second: 3}}"]
    done = run_command("pretrain", *options, *sampling)
    assert done.status == 0, done.err
    seen = set(describe(tmp_path / "run")["data"]["scans"])
    scans = [Store.open(half).records().fingerprints for half in halves]
    all_scans = {short_fingerprint(scan) for half in scans for scan in half}
    assert seen < all_scans
    assert len(seen) == 3  # one is held out
    assert "more_stores:" in (tmp_path / "run" / "config.yaml").read_text()
    again = run_command("pretrain", *options, *sampling, "--resume")
    assert again.status == 0, again.err


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("more_stores=[phantom]", "give one --store"),
        ("sampling={by: modality, weights: {ct: 1}}", "only one modality"),
        ("sampling={by: dataset}", "either weights of groups or a temperature"),
    ],
)
def test_mistakes_are_told_before_a_run_begins(pretrain_settings, tmp_path, assignment, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pretrain(pretrain_settings(assignment), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
