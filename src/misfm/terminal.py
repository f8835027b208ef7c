"""What a person sees while a command works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from misfm.text import printable

logger = logging.getLogger("misfm")
"""What the whole package tells; the command line shows it, and a run folder's log.txt keeps it."""
LINES_EVERY = 10.0
"""Seconds between plain lines."""


def _make_printable(record: logging.LogRecord) -> bool:
    """Keep a record from having terminals obey what names in it hold, whoever shows or keeps it."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


logger.addFilter(_make_printable)


class Progress:
    """Progress over a known number of things; goes to standard error.

    Args:
        title: what is being done.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._task: Any = None
        self._said = 0.0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, total: int) -> None:
        """Show that ``done`` of ``total`` are done, the last of them in part where it is no whole number."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif done % 1 and not self._said:
            self._said = time.monotonic()  # what is done within seconds needs no line
        elif done == total or time.monotonic() - self._said > LINES_EVERY:
            self._said = time.monotonic()
            share = f", {done % 1:.0%} of the next" if done % 1 else ""
            self.say(f"{self._title} {int(done)}/{total}{share}")

    def say(self, message: str) -> None:
        """Print a line without breaking the bar."""
        message = printable(message)
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False)
        else:
            print(message, file=sys.stderr, flush=True)


class TrainingHandler(logging.Handler):
    """Shows log records; those of training steps move a bar if there is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        message = record.getMessage()
        step, steps = getattr(record, "step", None), getattr(record, "steps", None)
        if step is None or steps is None or (self._progress is None and not sys.stderr.isatty()):
            print(message, file=sys.stderr, flush=True)
            return
        if self._progress is None:
            self._progress = Progress("Training").__enter__()
        self._progress.update(step, steps)
        self._progress.say(message)
        if step >= steps:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
        super().close()


@contextmanager
def show_log(logger: logging.Logger) -> Iterator[None]:
    """Show what ``logger`` is told while the context lasts."""
    handler = TrainingHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def format_duration(seconds: float) -> str:
    """Return a duration as ``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Say what to do after a command was stopped, with the option that it has for that, if any.

    Args:
        arguments: the command line, the program first.
    """
    resumes = [*arguments[1:2]] in (["pretrain"], ["finetune"])
    return f"run the same command {'with --resume' if resumes else 'again'} to go on"


def farewell(arguments: Sequence[str]) -> str:
    """What a command says that was stopped, where nothing more is known of what it has saved."""
    return f"Stopped: what was finished is kept; {how_to_go_on(arguments)}."
