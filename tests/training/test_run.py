"""The run folder: what it takes to start, to go on and to be refused; and the log of its numbers."""

import json

import pytest
import yaml

from misfm.errors import ConfigError, DataError
from misfm.files import forget_checksum
from misfm.settings import Settings
from misfm.terminal import format_duration
from misfm.training.logging import MetricsLog
from misfm.training.optim import OptimizerSettings
from misfm.training.run import RunFolder, first_difference
from misfm.training.settings import TrainingSettings


class RunOf(Settings):
    """What a run is started with, in these tests."""

    seed: int = 0
    split: str | None = None
    spacing: tuple[float, float, float] | None = (1, 1, 1)
    patch_size: tuple[int, int, int] = (8, 8, 8)
    training: TrainingSettings = TrainingSettings(steps=4, optimizer=OptimizerSettings(lr=1e-05))


SETTINGS = RunOf()


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_new_run_records_settings_and_environment(run):
    run.begin(SETTINGS, resume=False)
    assert run.read_settings() == SETTINGS.model_dump(mode="json")
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["versions"]["torch"][0].isdigit()
    assert {"python", "platform", "cpu_count", "command", "git"} <= environment.keys()


def test_a_run_is_not_overwritten_by_accident(run):
    run.begin(SETTINGS, resume=False)
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        run.begin(SETTINGS, resume=False)
    run.begin(SETTINGS, resume=True)


def test_a_run_goes_on_with_its_own_settings_only(run):
    run.begin(SETTINGS, resume=False)
    other = RunOf(training=SETTINGS.training.model_copy(update={"steps": 5}))
    with pytest.raises(ConfigError, match=r"other settings \(training\.steps was 4, now 5\)"):
        run.begin(other, resume=True)
    assert run.read_settings() == SETTINGS.model_dump(mode="json")


def test_null_stands_for_anything_only_where_something_is_planned(run):
    run.begin(RunOf(split="a.json"), resume=False)
    run.require(RunOf(split="a.json", spacing=None))
    with pytest.raises(ConfigError, match=r"other settings \(split was a\.json, now None\)"):
        run.require(RunOf(spacing=None))


def test_a_run_goes_on_after_misfm_got_more_settings(run):
    run.begin(SETTINGS, resume=False)
    older = run.read_settings()
    del older["training"]["optimizer"]["clip_norm"], older["seed"]
    run.config.write_text(yaml.safe_dump(older))
    forget_checksum(run.config)
    run.begin(SETTINGS, resume=True)
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        run.begin(RunOf(seed=1), resume=True)


def test_a_setting_that_is_gone_is_named(run):
    run.begin(SETTINGS, resume=False)
    run.config.write_text(yaml.safe_dump({**run.read_settings(), "epochs": 7}))
    forget_checksum(run.config)
    with pytest.raises(ConfigError, match="epochs was 7, now None"):
        run.begin(SETTINGS, resume=True)


def test_a_folder_with_other_things_is_left_alone(run):
    run.path.mkdir()
    (run.path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        run.begin(SETTINGS, resume=False)
    assert [file.name for file in run.path.iterdir()] == ["thesis.txt"]


def test_resuming_nothing_starts_anew(run):
    run.begin(SETTINGS, resume=True)
    assert run.config.exists()


def test_a_path_below_a_file_cannot_hold_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        RunFolder(tmp_path / "file" / "run").begin(SETTINGS, resume=False)


@pytest.mark.parametrize("content", ["[1, 2]", "words", "a: [", ""])
def test_settings_that_are_none_are_refused(run, content):
    run.path.mkdir()
    run.config.write_text(content)
    with pytest.raises(DataError, match=r"config\.yaml does not hold the settings of a run"):
        run.begin(SETTINGS, resume=True)


@pytest.mark.parametrize(
    ("saved", "given", "expected"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "a.c was 2, now 3"),
        ({"a": 1, "old": 2}, {"a": 1}, "old was 2, now None"),
        ({"a": None}, {"a": {"b": 1}}, "a was None, now {'b': 1}"),
    ],
)
def test_the_first_difference_is_named(saved, given, expected):
    assert first_difference(saved, given) == expected


def test_metrics_are_one_object_a_line_and_always_json(run):
    run.path.mkdir()
    with MetricsLog(run, steps=4, start=0) as log:
        log.write(2, {"loss": 0.123456789, "dice": float("nan"), "gradient_norm": float("inf")})
    (line,) = run.metrics.read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert row == {"step": 2, "loss": 0.123457, "dice": None, "gradient_norm": None}
    assert "step 2/4  loss 0.1235" in (run.path / "log.txt").read_text()
    assert list((run.path / "tensorboard").iterdir())


def test_steps_that_are_repeated_are_logged_once(run):
    run.path.mkdir()
    rows = [{"step": 2, "loss": 5.0}, {"step": 4, "loss": 4.0}, {"step": 6, "loss": 3.0}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo')
    with MetricsLog(run, steps=8, start=4) as log:
        log.write(6, {"loss": 2.0})
    assert run.read_metrics() == [*rows[:2], {"step": 6, "loss": 2.0}]


def test_a_damaged_line_is_named(run):
    run.path.mkdir()
    run.metrics.write_text('{"step": 2}\nrubbish\n{"step": 4}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        run.read_metrics()


@pytest.mark.parametrize(
    ("seconds", "expected"), [(11.7, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (59.6, "1 min 00 s")]
)
def test_durations_read_well(seconds, expected):
    assert format_duration(seconds) == expected


def test_what_was_moved_is_the_same_and_another_start_is_not(tmp_path):
    (there := tmp_path / "there" / "store").mkdir(parents=True)
    (builtin := tmp_path / "runs").mkdir()
    assert first_difference({"store": str(tmp_path / "here" / "store")}, {"store": str(there)}) == ""
    for name, before in (("weights", "builtin"), ("weights", "none"), ("store", "phantom:800")):
        assert first_difference({name: before}, {name: str(builtin)}).startswith(f"{name} was {before}")
