"""A folder for one process at a time, and a run that goes on under the conditions it began under."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from misfm import world
from misfm.locks import hold, is_held_here
from misfm.terminal import logger
from misfm.training.run import LOCK, RunFolder, present_device

_training = threading.RLock()
"""The seed and the number of threads of torch belong to the whole process: one training at a time."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes and threads out of a folder while the context lasts.

    What this thread does within need not hold it again. A folder that stays empty is not left behind.

    Raises:
        Taken: another process works in it.
        DataError: it cannot be made or written to.
    """
    if is_held_here(folder / LOCK):
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    taken = f"Another misfm works in {folder}: wait until it ends, or choose another --out."
    try:
        with hold(folder / LOCK, taken, remove=True):
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextmanager
def as_begun(run: RunFolder) -> Iterator[None]:
    """Compute on as many threads as a run began with, if there is one.

    Sums depend on how they are shared out among threads: with others it would silently be another run.

    Raises:
        DataError: the file that says how it began is damaged.
    """
    before, begun = torch.get_num_threads(), run.conditions()
    threads, device = begun.get("threads"), begun.get("device")
    if begun and (ranks := begun.get("ranks", 1)) != world.size():
        logger.info(
            "the run was begun by %s process(es) and is gone on with by %d: its numbers will differ in their "
            "last digits.",
            *(ranks, world.size()),
        )
    elif isinstance(threads, int) and 0 < threads != before:
        logger.info("going on with %d threads, as the run began, instead of %d", threads, before)
        torch.set_num_threads(threads)
    if device is not None and device != present_device():
        logger.warning(
            "the run began on %s and goes on on %s: its numbers will differ in their last digits.",
            *(device, present_device()),
        )
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def in_run(run: RunFolder) -> Iterator[None]:
    """Work in a run folder: alone, also in this process, and where the run goes on, as it began.

    Raises:
        Taken, DataError: as :func:`exclusive` and :func:`as_begun`.
    """
    with exclusive(run.path), _one_training(run), as_begun(run):
        yield


@contextmanager
def _one_training(run: RunFolder) -> Iterator[None]:
    if not _training.acquire(blocking=False):
        logger.info("%s waits for another training of this process to end", run.path)
        _training.acquire()
    try:
        yield
    finally:
        _training.release()
