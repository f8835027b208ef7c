"""Signals: the first stops, wherever the program is; saving is left in peace; a second one kills."""

import os
import signal
import subprocess
import sys
import time

import pytest

from misfm import signals
from misfm.signals import ASKING, Interrupted, deferred, handled, interruptible, requested, uninterrupted


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def stopped(work, within):
    """Whether a stop ended ``work``; what it did before that is the rest of what it returns."""
    done = []
    with pytest.raises(Interrupted), within():
        work(done)
    return done


@pytest.mark.parametrize("number", ASKING)
def test_outside_of_training_a_signal_stops_where_the_program_is(number):
    def work(done):
        done.append("before")
        ask(number)
        done.append("after")

    before = signal.getsignal(number)
    assert stopped(work, lambda: handled("Stopped.")) == ["before"]
    assert signal.getsignal(number) is before
    assert not requested()


def test_failures_that_are_dealt_with_do_not_swallow_a_stop():
    def work(done):
        try:
            ask()
        except Exception:
            done.append("went on")

    assert stopped(work, handled) == []


def test_training_is_asked_and_stops_at_its_end():
    def work(done):
        with deferred():
            ask()
            done.append(requested())
        done.append("went on")

    assert stopped(work, handled) == [True]


def test_a_stop_in_the_last_moment_is_not_forgotten():
    assert stopped(lambda done: ask(), deferred) == []


def test_what_can_be_interrupted_is():
    def work(done):
        with uninterrupted():
            with interruptible():
                done.append("before")
            ask()
            done.append("saved")
            with interruptible():
                done.append("went on")

    assert stopped(work, deferred) == ["before", "saved"]


def test_what_takes_too_long_is_interrupted_unless_it_saves(monkeypatch):
    def step(done):
        ask()
        time.sleep(60)
        done.append("went on")

    def save(done):
        ask()
        with uninterrupted():
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                time.sleep(0.01)
            done.append("saved")

    monkeypatch.setattr(signals, "PATIENCE", 0.05)
    assert stopped(step, deferred) == []
    assert stopped(save, deferred) == ["saved"]


def test_signals_that_come_together_are_one():
    def work(done):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            ask(number)
        done.append("saved")

    assert stopped(work, deferred) == ["saved"]


SLEEPER = """
import ctypes, os, sys
from misfm import signals
signals.LIMIT, signals.PATIENCE, signals.REPEATED = float(sys.argv[1]), 0.05, 0.1
with signals.handled("farewell"), signals.deferred(), signals.uninterrupted():
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    for _ in range(3):
        libc.sleep(60)  # one long computation outside of Python; signals cut it short, hence three
"""


def sleeper(limit):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(limit)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_nothing_interrupts_ends_with_the_process():
    process = sleeper(0.2)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (1, "farewell\n")


def test_a_second_signal_kills():
    process = sleeper(1000)
    process.terminate()
    time.sleep(0.3)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGTERM, "")


def test_a_forked_process_leaves_signals_to_its_parent(monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.01)
    with handled():
        child = os.fork()
        if child == 0:
            ask()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not requested()
        time.sleep(0.05)  # else what watches here would be told of it now


EARLY = """
import os, signal, sys
sys.argv = ["misfm", "pretrain"]
class Finder:
    def find_spec(self, name, *_):
        if name == "misfm.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from misfm.__main__ import main
main()
"""


def test_a_stop_while_the_program_is_imported_is_a_sentence():
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "Stopped: what was finished is kept; run the same command with --resume to go on.\n"
    )
