"""Batches read ahead by worker processes: what goes wrong in one of them is told as if it went wrong here.

A GPU that waits for patches is idle, so where there is one, workers read ahead into memory from which it
copies by itself (*pinned*). On a CPU they would take the cores that the network computes on.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from misfm.errors import MisfmError
from misfm.ranks import started_world
from misfm.signals import ignore
from misfm.terminal import logger
from misfm.training.settings import TrainingSettings

KILLED = (
    "A process that read batches was killed, most likely for want of memory: go on with a smaller "
    "training.num_workers."
)

MOST_WORKERS = 12
"""Chosen for one GPU."""
AHEAD = 8
"""Batches read ahead at least, two by each worker."""
SHARED_MEMORY = 1 << 30
"""Bytes of ``/dev/shm`` below which no workers are chosen: they pass batches on through it, and containers
often have 64 MB."""


def loader_workers(wanted: int | None) -> int:
    """Return how many processes read ahead for this training process.

    Args:
        wanted: ``training.num_workers``; null chooses.
    """
    if wanted is not None:
        return wanted
    if not torch.cuda.is_available():
        return 0
    if shared_memory() < SHARED_MEMORY:
        return 0
    started = started_world()
    return min(MOST_WORKERS, max(1, usable_cores() // (started.local_size if started else 1) - 1))


def usable_cores() -> int:
    """Return how many cores this process may use; a scheduler may have given it few of a machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shared_memory() -> int:
    """Return the size of ``/dev/shm`` in bytes; as much as needed where there is no such folder."""
    try:
        state = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return SHARED_MEMORY
    return state.f_frsize * state.f_blocks


class _Told(Dataset[Any]):
    """Batches of which a failure that says what to do is one, for torch would add its worker's traceback."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Any:
        try:
            return self.batches[index]
        except MisfmError as error:
            return error


@contextmanager
def batch_stream(batches: Dataset[Any], first: int, settings: TrainingSettings) -> Iterator[Iterator[Any]]:
    """Give raw batches from index ``first`` to the end of the run, read ahead by worker processes.

    These leave signals to this process, and end with the context, or soon after this process has died.

    Raises:
        MisfmError: a batch that cannot be read, or a worker that was killed.
    """
    workers = loader_workers(settings.num_workers)
    if not workers and settings.num_workers is None and torch.cuda.is_available():
        logger.warning(
            "/dev/shm has only %d MB, too little to read patches ahead in other processes: start the "
            "container with more, such as docker run --shm-size=16g, or the GPU waits for patches.",
            shared_memory() // 10**6,
        )
    loader = DataLoader(
        _Told(batches),
        batch_size=None,
        sampler=range(
            first, settings.steps * settings.accumulate
        ),  # one pass: workers live as long as the run
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(AHEAD / workers)) if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore,
    )
    others = {*multiprocessing.active_children()}
    try:
        with _same_answer_to_dead_children():
            stream = iter(loader)  # here, for it draws from the generator that dropout draws from
        yield _received(stream, {*multiprocessing.active_children()} - others)
    except RuntimeError as error:  # of a worker that was killed as it started
        if "DataLoader worker (pid" not in str(error):
            raise
        raise MisfmError(KILLED) from error
    finally:
        for worker in {*multiprocessing.active_children()} - others:
            worker.kill()


def _received(stream: Iterator[Any], workers: set[BaseProcess]) -> Iterator[Any]:
    """Yield what workers have read; whatever torch makes of one that was killed is told in a sentence."""
    while True:
        try:
            batch = next(stream)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            raised_there = str(error).startswith("Caught ")
            if raised_there or not wait([worker.sentinel for worker in workers], timeout=1):
                raise
            raise MisfmError(KILLED) from error
        if isinstance(batch, MisfmError):
            raise batch
        yield batch


@contextmanager
def _same_answer_to_dead_children() -> Iterator[None]:
    """Keep torch from raising wherever the program happens to be when a worker dies, such as in a checkpoint.

    It finds out all the same when it waits for the next batch.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
