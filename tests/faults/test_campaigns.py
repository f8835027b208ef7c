"""The fault campaigns of `benchmarks/faults`, a few faults each; the whole ones are in docs/guarantees.md."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from misfm.errors import DataError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "faults"
sys.path.insert(0, str(FOLDER))

import common  # noqa: E402
import flips  # noqa: E402
import inputs  # noqa: E402
import kills  # noqa: E402
import mutations  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(autouse=True)
def one_thread_and_a_loud_log():
    """The campaigns set threads and silence the log for their own process: put both back."""
    import logging

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(tmp_path):
    """In memory where there is such a folder: thousands of files are written and synced."""
    made = common.scratch("test")
    yield made
    shutil.rmtree(made)


def check(campaign):
    """Nothing but outcomes that keep the promise; else all that was found, one a line."""
    found = [f"{key}: {one['detail']} (fault {one['number']})" for key, one in campaign.findings.items()]
    assert not found, "\n".join(["", *found])


def tried(name, folder, faults, count):
    campaign = common.Campaign(name, 7, folder)
    common.run_campaign(campaign, faults, count, batch=count)
    return campaign


def test_spoilt_input_is_a_value_or_a_sentence(folder):
    made = inputs.prepare(folder, 7, folder / "findings")
    campaign = tried("inputs", folder, inputs.faults(made), 400)
    check(campaign)
    assert {"refused", "value"} <= {result for row in campaign.counts.values() for result in row}


def test_damage_to_our_own_files_is_noticed(folder):
    campaign = tried("flips", folder, flips.faults(flips.prepare(folder, 7)), 400)
    check(campaign)
    assert sum(row.get("refused", 0) for row in campaign.counts.values()) > 100


def test_killed_commands_end_with_the_same_bytes(folder):
    made = kills.prepare(folder, 7, ["ingest", "pretrain", "finetune", "predict", "evaluate"])
    campaign = common.Campaign("kills", 7, folder)
    for number in range(8):
        for outcome, _ in made.chain(number):
            campaign.note(number, outcome)
    check(campaign)
    assert sum(row["survived"] for row in campaign.counts.values()) > 5


# The campaigns themselves


def test_a_worker_that_hangs_dies_or_fails_is_an_outcome_and_the_next_goes_on():
    def attempt(number):
        if number == 1:
            time.sleep(60)
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        try:
            raise DataError("a sentence") if number == 3 else KeyError("x")
        except Exception as error:
            return common.judge_error("kind", error)

    limits = common.Limits(seconds=0.3)
    outcomes = list(common.forked(attempt, lambda number: "kind", range(1, 5), limits))
    assert [(number, one.result) for number, one in outcomes] == [
        (1, "hang"),
        (2, "crash"),
        (3, "refused"),
        (4, "traceback"),
    ]


def test_memory_that_ran_out_is_a_finding_whatever_the_sentence():
    error = DataError("cannot be read; copy it again")
    error.__cause__ = MemoryError()
    assert common.judge_error("kind", error).result == "memory"
    assert common.judge_error("kind", DataError("x (Unable to allocate 3 TiB)")).result == "memory"
    assert common.judge_error("kind", DataError("x promises 3 TiB and holds 2 kB")).result == "refused"


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path):
    asked = []

    def faults(numbers):
        for number in numbers:
            asked.append(number)
            yield number, common.Outcome("kind", "value" if number else "silent", "a bit")

    for count in (3, 5):
        campaign = common.Campaign.open("name", 0, tmp_path)
        common.run_campaign(campaign, faults, count, batch=2)
    assert asked == [0, 1, 2, 3, 4]
    assert campaign.counts == {"kind": {"silent": 1, "value": 4}}
    assert [found["number"] for found in campaign.findings.values()] == [0]


def test_a_fault_follows_from_seed_and_number():
    content, editor = b'{"labels": {"liver": 1}, "names": ["a", "b"]}', mutations.any_json
    drawn = [mutations.spoil(content, editor, common.generator(3, "edits", i)) for i in (5, 5, 6)]
    first, again, other = (mutations.edited(content, edits) for edits in drawn)
    assert first == again
    assert first != content
    assert [edit.what for edit in drawn[0]] != [edit.what for edit in drawn[2]]
    assert other is not None


def test_the_page_of_guarantees_shows_the_last_results():
    spec = importlib.util.spec_from_file_location("guarantees_table", FOLDER / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    page = table.PAGE.read_text()
    assert page == table.make(page), "run `python benchmarks/faults/table.py`"
