"""A training that no machine could hold is refused before work begins, and any that might fit is not."""

import pytest

from misfm.config import NetworkSettings
from misfm.errors import ConfigError
from misfm.planning import room
from misfm.planning.machine import Machine
from misfm.planning.room import check_room, least_saved_bytes

UNET = NetworkSettings(name="unet")


def refuse(settings, network=UNET, patch_size=(16, 16, 16), batch_size=2):
    with pytest.raises(ConfigError) as refused:
        check_room(settings, network, patch_size, batch_size, 1)
    return str(refused.value)


def test_batches_larger_than_the_memory_are_refused_with_both_numbers(pretrain_settings, monkeypatch):
    monkeypatch.setattr(room, "present_machine", lambda: Machine("cpu"))
    monkeypatch.setattr(room, "available_bytes", lambda: 2**30)
    settings = pretrain_settings()
    check_room(settings, UNET, (128, 128, 128), 2, 1)
    message = refuse(settings, batch_size=10**9)
    assert message.startswith("Batches of 1,000,000,000 patches of (16, 16, 16) take ")
    assert "of memory or more and 1.0 GiB are free: choose a smaller batch_size or patch_size." in message
    assert "(2000, 2000, 2000)" in refuse(settings, patch_size=(2000, 2000, 2000))


def test_what_a_gpu_holds_counts_there(pretrain_settings, monkeypatch):
    monkeypatch.setattr(room, "present_machine", lambda: Machine("cuda", 2**30))
    monkeypatch.setattr(room, "available_bytes", lambda: 2**40)
    check_room(pretrain_settings(), UNET, (128, 128, 128), 2, 1)
    assert "of memory of the GPU or more and 1.0 GiB" in refuse(pretrain_settings(), batch_size=10_000)


def test_computing_twice_is_offered_where_that_may_fit(pretrain_settings, monkeypatch):
    monkeypatch.setattr(room, "present_machine", lambda: Machine("cuda", 2 * 2**30))
    monkeypatch.setattr(room, "available_bytes", lambda: 2**40)
    large = {"network": NetworkSettings(name="primus-m"), "patch_size": (160, 160, 160)}
    assert "or training.recompute_activations=true, with which they may fit." in refuse(
        pretrain_settings(), **large
    )
    assert "recompute" not in refuse(pretrain_settings(), **large, batch_size=200)
    recomputing = pretrain_settings("training.recompute_activations=true")
    check_room(recomputing, large["network"], large["patch_size"], 2, 1)
    assert "recompute" not in refuse(recomputing, **large, batch_size=200)


def test_more_processes_than_are_of_use_are_refused(pretrain_settings, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(room, "available_bytes", lambda: 2**50)
    settings = pretrain_settings("training.num_workers=17")
    assert refuse(settings) == (
        "training.num_workers asks for 17 processes and this machine has 2 processors: choose 16 at most."
    )
    check_room(pretrain_settings("training.num_workers=16"), UNET, (16, 16, 16), 2, 1)


@pytest.mark.parametrize("options", [{"channels": "x"}, {"channels": []}, {"channels": [None]}, {}])
def test_odd_options_are_left_to_the_network(options):
    assert least_saved_bytes(NetworkSettings(name="unet", options=options)) > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size=1000000000", "choose a smaller batch_size"),
        ("training.num_workers=100000", "less than or equal to 10000"),
        ("patch_size=[100000, 100000, 100000]", "choose a smaller"),
        ("training.steps=1000000000000", "less than or equal to 1000000000"),
        ("generated=1000000000", "less than or equal to 100000"),
        ("validation_batches=1000000000", "less than or equal to 10000"),
        ("network.options.name=x", "'name' follows from data and settings"),
        ("network.options.channels=[1000000000, 4]", "no network has more than 65,536"),
        ("network={name: unet, options: {channels: x}}", "at least two levels"),
        ("training.optimizer.lr=inf", "finite number"),
        ("weights=hf://a/..", "is no address on the hub"),
        ("store=phantom:1000000000", "number from 2 to 100000"),
        ("store=phantom:²", "number from 2 to 100000"),
    ],
)
def test_absurd_settings_are_one_sentence(run_command, store, tiny_pretraining, tmp_path, setting, message):
    command = ("pretrain", "--store", store, "--out", tmp_path / "run", *tiny_pretraining)
    done = run_command(*command, "--set", setting)
    assert done.status in (1, 2)
    assert message in done.error
    assert len(done.error) < 600
    assert not (tmp_path / "run").exists()


def test_absurdly_many_workers_of_an_ingest_are_refused(run_command, scans, tmp_path):
    done = run_command("ingest", scans, "--store", tmp_path / "store", "--workers", 100_000)
    assert (done.status, "--workers asks for 100,000 processes" in done.error) == (2, True)
