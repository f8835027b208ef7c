"""Starting misfm's command line in a process that is about to be killed.

Most are forked from a process that has imported everything, which saves seconds each; the rest are started as
users start them, so that imports are hit, too.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands import shorten_demo
from common import plain_signals

import misfm

PATIENCE = 10.0
"""Seconds within which a command that was asked to stop has ended."""
LONGEST = 120.0
"""Seconds after which a command hangs."""


@dataclass(frozen=True)
class Kill:
    """When and how a process is ended.

    Attributes:
        number: the signal.
        group: whether all processes of the group get it.
        seconds: after the start; or
        event: at the n-th time that something is written; 0 for a moment in time.
        after: whether the writing is done first.
        delay: seconds between the event and the signal, within which the process goes on.
    """

    number: int = signal.SIGKILL
    group: bool = False
    seconds: float = 0.0
    event: int = 0
    after: bool = False
    delay: float = 0.0

    @property
    def name(self) -> str:
        """The signal, and whether a group gets it."""
        return signal.Signals(self.number).name + (", group" if self.group else "")

    def send(self, process: int) -> None:
        """End a process, or its group."""
        if self.group:
            os.killpg(process, self.number)
        else:
            os.kill(process, self.number)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: exit status, negative for a signal.
        hit: whether its signal came before it had done all it had to.
        seconds: from the signal, or the start, to the end.
        errors: what it wrote to standard error.
    """

    status: int
    hit: bool
    seconds: float
    errors: str


class Events:
    """Counts what a process writes: files opened, synced, renamed, removed, transactions committed."""

    def __init__(self, kill: Kill | None, report: Path) -> None:
        self.count, self.kill, self.report = 0, kill, report

    def install(self) -> None:
        """Watch this process from now on."""
        for module, name in (
            (os, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "mkdir"),
            (shutil, "rmtree"),
        ):
            setattr(module, name, self._watched(getattr(module, name)))
        plain = builtins.open

        def watched_open(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                return self._watched(plain)(file, mode, *more, **options)
            return plain(file, mode, *more, **options)

        builtins.open = io.open = watched_open  # type: ignore[assignment]
        connect = sqlite3.connect

        def watched_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(lambda text: text.startswith("COMMIT") and self._hit(False))
            return connection

        sqlite3.connect = watched_connect  # type: ignore[assignment]

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            if self.kill is None or not self.kill.after:
                self._hit(False)
                return call(*arguments, **options)
            result = call(*arguments, **options)
            self._hit(True)
            return result

        return watched

    def _hit(self, after: bool) -> None:
        self.count += 1
        if self.kill is None:
            os.truncate(self.report, self.count)  # its length is the count: nothing is written at the end
        elif self.count == self.kill.event:
            os.truncate(self.report, 1)
            process = os.getpid()
            if self.kill.delay:
                threading.Timer(self.kill.delay, self.kill.send, [process]).start()
            else:
                self.kill.send(process)


def run_forked(arguments: Sequence[str], log: Path, kill: Kill | None) -> tuple[Ended, int]:
    """Run a command in a fork of this process; returns how it ended, and how often it wrote something."""
    report = log.with_suffix(".events")
    report.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        _be_misfm(arguments, log, Events(kill, report))
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(process, process)  # as the child does: whoever comes first
    timed = kill is not None and not kill.event
    ended = _wait(process, log, kill if timed else None)
    size = report.stat().st_size
    hit = ended.status != 0 and (ended.hit if timed else bool(kill and size))
    return Ended(ended.status, hit, ended.seconds, ended.errors), size


def _be_misfm(arguments: Sequence[str], log: Path, events: Events) -> None:
    """Be the command line, in a group of its own, until the end of this process."""
    status = 1
    try:
        os.setpgid(0, 0)
        faulthandler.disable()
        plain_signals()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(stream, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # A test runner has put others in their place.
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
        shorten_demo()
        if events.kill is None or events.kill.event:
            events.install()
        from misfm.cli import main

        sys.argv = ["misfm", *arguments]
        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_real(arguments: Sequence[str], log: Path, kill: Kill | None) -> Ended:
    """Run a command as users do, imports included."""
    script = "import sys; sys.argv[0] = 'misfm'; from misfm.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(misfm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            process_group=0,
        )
    ended = _wait(process.pid, log, kill)
    process.returncode = ended.status  # it has been waited for
    return replace(ended, hit=ended.hit and ended.status != 0)


def _wait(process: int, log: Path, kill: Kill | None) -> Ended:
    """Wait for a process, sending its signal when it is time; what it started does not outlive it."""
    began = time.monotonic()
    sent: float | None = None
    ended, limit = None, LONGEST
    try:
        while ended is None and time.monotonic() - began < limit:
            done, status = os.waitpid(process, os.WNOHANG)
            now = time.monotonic()
            if done:
                ended = os.waitstatus_to_exitcode(status)
            elif kill is not None and sent is None and now - began >= kill.seconds:
                kill.send(process)
                sent, limit = now, now - began + PATIENCE + 5
            else:
                time.sleep(0.002)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if ended is None:
            ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    errors = log.read_text(errors="replace") if log.exists() else ""
    return Ended(ended, sent is not None, time.monotonic() - (began if sent is None else sent), errors)
