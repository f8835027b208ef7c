"""The command line: every verb explains itself; errors are one sentence and the right exit status."""

import json
import logging
import sys

import pytest
import typer

from misfm.cli import app
from misfm.cli.options import case_choice, numbers
from misfm.errors import ConfigError, DataError, MisfmError
from misfm.terminal import Progress, show_log

VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)


def test_the_verbs_are_those_of_the_contract():
    assert set(VERBS) >= {"demo", "ingest", "pretrain", "finetune", "predict", "evaluate", "info"}


def test_help_lists_every_verb(run_command):
    done = run_command("--help")
    assert done.status == 0
    assert all(verb in done.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run_command, verb):
    done = run_command(verb, "--help")
    assert done.status == 0
    assert "--json" in done.out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["finetun"], "finetune"),
        (["pretrain", "--store", "s", "--out", "o", "--step", "3"], "--steps"),
        (["pretrain", "--store", "s"], "--out"),
        (["pretrain", "--store", "s", "--out", "o", "--steps", "many"], "--steps"),
        (["pretrain", "--store", "s", "--out", "o", "--steps", "0"], "--steps"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_nearest(run_command, tmp_path, monkeypatch, arguments, hint):
    monkeypatch.chdir(tmp_path)
    done = run_command(*arguments)
    assert done.status == 2
    assert hint in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "smal"], "There is no recipe 'smal'; did you mean 'small'?"),
        (["--set", "training.stepz=3"], "There is no setting 'training.stepz' in the settings; did you mean"),
        (["--set", "steps"], "--set takes KEY=VALUE, got 'steps'."),
        (["--config", "none.yaml"], "Cannot read the settings in none.yaml"),
        (
            ["--patch-size", "8,8"],
            "--patch-size takes three positive numbers D,H,W such as 3,4,4; got '8,8'.",
        ),
        (["--patch-size", "8,0,8"], "--patch-size takes three positive numbers"),
        (["--set", "pretext.name=volume-fusion"], "did you mean 'volume-fusion-v"),
    ],
)
def test_wrong_settings_are_status_2_and_leave_nothing(
    run_command, store, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    done = run_command("pretrain", "--store", store, "--out", "run", *arguments)
    assert done.status == 2
    assert message in done.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("wrong setting"), 2, "Error: wrong setting"),
        (DataError("bad scan"), 1, "Error: bad scan"),
        (MisfmError("something else"), 1, "Error: something else"),
        (
            OSError(28, "No space left on device", "/some/file"),
            1,
            "Error: /some/file: No space left on device.",
        ),
        (OSError(28, "No space left on device"), 1, "Error: The system: No space left on device."),
        (
            KeyboardInterrupt(),
            1,
            "Stopped: what was finished is kept; run the same command again to go on.",
        ),
        (
            MemoryError("949 MiB"),
            1,
            "Error: There is not enough memory; use a machine with more, or smaller patches and batches.",
        ),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_become_a_sentence_and_a_status(run_command, monkeypatch, error, status, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("misfm.commands.info.describe_path", fail)
    done = run_command("info", "somewhere")
    assert done.status == status
    assert done.out == ""
    assert done.err.strip().splitlines()[-1:] == ([message] if message else [])


def test_json_is_the_last_line_and_all_else_goes_to_standard_error(run_command, monkeypatch):
    def describe(_):
        logging.getLogger("misfm").info("looking")
        return {"kind": "store", "volumes": 3}

    monkeypatch.setattr("misfm.commands.info.describe_path", describe)
    done = run_command("info", "somewhere", "--json")
    assert (done.status, done.err) == (0, "looking\n")
    assert json.loads(done.out) == {"kind": "store", "volumes": 3}
    plain = run_command("info", "somewhere")
    assert plain.out.splitlines() == ["kind           store", "volumes        3"]


def test_numbers_are_three_and_positive():
    assert numbers("3,4,5", int, "--patch-size") == (3, 4, 5)
    assert numbers("1.5, 1,2", float, "--spacing") == (1.5, 1, 2)
    for wrong in ("", "1,2", "1,2,3,4", "a,b,c", "1,-1,1", "1,1,nan", "1,1,inf"):
        with pytest.raises(ConfigError, match="--spacing takes three positive numbers"):
            numbers(wrong, float, "--spacing")


def test_cases_are_a_number_or_names():
    assert case_choice(None) is None
    assert case_choice("5") == 5
    assert case_choice("007") == ["007"]
    assert case_choice("a, b,,c") == ["a", "b", "c"]


def test_progress_without_a_terminal_is_a_few_plain_lines(capsys):
    with Progress("Reading") as progress:
        for done in range(1, 101):
            progress.update(done, 100)
        progress.say("a word")
    assert capsys.readouterr().err.splitlines() == ["Reading 1/100", "Reading 100/100", "a word"]


def test_progress_within_a_long_case_is_told_every_ten_seconds(capsys, monkeypatch):
    clock = iter(range(100, 200, 7))
    monkeypatch.setattr("misfm.terminal.time.monotonic", lambda: next(clock))
    with Progress("Predicting") as progress:
        for share in (0.1, 0.2, 0.3, 0.4, 1):
            progress.update(1 + share, 2)
    assert capsys.readouterr().err.splitlines() == ["Predicting 1/2, 30% of the next", "Predicting 2/2"]


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("Reading") as progress:
        progress.update(3, 10)
        progress.say("a [word]")
    shown = capsys.readouterr().err
    assert "3/10" in shown
    assert "a [word]" in shown


def test_the_log_is_shown_while_a_command_runs(capsys):
    logger = logging.getLogger("misfm")
    with show_log(logger):
        logger.info("shown")
    logger.info("not shown")
    assert capsys.readouterr().err == "shown\n"


def test_training_steps_move_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logger = logging.getLogger("misfm")
    with show_log(logger):
        for step in (1, 2):
            logger.info("step %d/2", step, extra={"step": step, "steps": 2})
        logger.info("done")
    shown = capsys.readouterr().err
    assert "step 1/2" in shown
    assert "2/2" in shown
    assert shown.rstrip().endswith("done")
