"""One function over many things: in this process, in local processes, or on a Dask cluster; and things that
are read, computed and written, one while the next is read and the last is written."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from misfm.errors import ConfigError, DataError
from misfm.signals import PATIENCE, Interrupted, request, stop_if_requested, withheld, working_for

MOST_PER_PROCESSOR = 8

Item = TypeVar("Item")
Result = TypeVar("Result")
Thing = TypeVar("Thing", contravariant=True)
Read = TypeVar("Read")
Made = TypeVar("Made")
Written = TypeVar("Written")


@dataclass(frozen=True)
class Where:
    """Where many things are done; by default one after the other in this process.

    Attributes:
        workers: processes on this machine.
        scheduler: address of a Dask scheduler whose workers see the same files.
        devices: GPUs, a process for each, or "auto" for all; without a GPU as many processes.
    """

    workers: int = 0
    scheduler: str | None = None
    devices: int | str | None = None

    def num_workers(self, num_gpus: int) -> int:
        """Return how many processes of this machine work; up to 1 is this one.

        Args:
            num_gpus: that the machine has.

        Raises:
            ConfigError: workers and devices are both given, or more GPUs than there are.
        """
        if self.devices is None:
            return self.workers
        if self.workers or self.scheduler:
            raise ConfigError(
                "--devices starts a process for each GPU by itself: leave out --workers and --scheduler."
            )
        if self.devices == "auto":
            return max(1, num_gpus)
        if not str(self.devices).isdecimal() or int(self.devices) < 1:
            raise ConfigError(f"--devices is a number from 1, or auto; got '{self.devices}'.")
        if num_gpus and int(self.devices) > num_gpus:
            raise ConfigError(f"--devices asks for {self.devices} GPUs, and this machine has {num_gpus}.")
        return int(self.devices)


class Pool:
    """Where work is done.

    Args:
        client: of a Dask cluster; None works in this process.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client
        self._name = secrets.token_hex(8)
        self._is_stopped = False
        self._flying: deque[tuple[Any, Any]] = deque()

    @property
    def is_cluster(self) -> bool:
        """Whether work is done in other processes."""
        return self._client is not None

    @property
    def at_once(self) -> int:
        """How many items are worked on at a time."""
        return 1 if self._client is None else max(1, sum(self._client.ncores().values()))

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        lost: Callable[[Item], Result],
    ) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result, in the order of the items.

        Few are in flight at a time, which bounds memory. ``lost`` gives the result of an item that ended the
        process it was worked on in, mostly for want of memory.
        """
        if self._client is None:
            yield from ((item, function(item)) for item in items)
            return
        from distributed import KilledWorker

        def collect(item: Item, future: Any) -> tuple[Item, Result]:
            try:
                return item, future.result()
            except KilledWorker:
                return item, lost(item)

        ahead = 2 * self.at_once
        work, flying = partial(_work, self._name, function), self._flying
        for item in items:
            flying.append((item, self._client.submit(work, item, pure=False)))
            if len(flying) > ahead:
                yield collect(*flying[0])
                flying.popleft()
        while flying:
            yield collect(*flying[0])
            flying.popleft()

    def stop(self) -> None:
        """Ask what is worked on to save and stop, begin nothing more, and wait for that, but not for long."""
        from distributed import wait

        if self._client is not None and not self._is_stopped:
            self._is_stopped = True
            with suppress(OSError, TimeoutError):  # of workers that are gone
                self._client.run(request, self._name, on_error="ignore")
                wait([future for _, future in self._flying], timeout=PATIENCE)


def _work(name: str, function: Callable[[Item], Result], item: Item) -> Result | None:
    """Do one item in a worker; nobody waits for the result of what was stopped."""
    with working_for(name):
        try:
            stop_if_requested()
            return function(item)
        except Interrupted:
            return None


def check_workers(count: int, option: str) -> None:
    """Refuse more processes than a machine has any use for: it would be busy with nothing else.

    Raises:
        ConfigError: says how many processors there are.
    """
    processors = os.cpu_count() or 1
    if count > MOST_PER_PROCESSOR * processors:
        raise ConfigError(
            f"{option} asks for {count:,} processes and this machine has {processors} processors: choose "
            f"{MOST_PER_PROCESSOR * processors} at most."
        )


def _client(scheduler: str) -> Any:
    """Return a client of the scheduler at an address.

    Raises:
        ConfigError: there is none.
    """
    from distributed import Client

    try:
        return Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--scheduler: there is no Dask scheduler at '{scheduler}' ({error}); `dask scheduler` says "
            "where it listens, such as tcp://host:8786."
        ) from error


@contextmanager
def pool(workers: int = 0, scheduler: str | None = None) -> Iterator[Pool]:
    """Open a place to work in.

    Args:
        workers: processes on this machine; up to 1 works in this process.
        scheduler: address of a Dask scheduler to use instead, whose workers see the same files.
    """
    if workers <= 1 and scheduler is None:
        yield Pool()
        return
    if scheduler is None:
        check_workers(workers, "--workers")
    # Half a second to import, and needed here only.
    from distributed import Client, LocalCluster

    others = {*multiprocessing.active_children()}
    with ExitStack() as stack:
        cluster = None
        if scheduler is not None:
            client = stack.enter_context(_client(scheduler))
        else:
            with withheld():
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
                stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster))
        workplace = Pool(client)
        try:
            yield workplace
        except Interrupted:
            workplace.stop()
            for nanny in cluster.workers.values() if cluster else ():
                nanny.auto_restart = False
            for worker in {*multiprocessing.active_children()} - others:
                worker.kill()  # it has saved, and takes four seconds to end by itself
            raise


class Parts(Protocol[Thing, Read, Made, Written]):
    """What is done with each of many things, in this order. A DataError is of that thing alone."""

    def read(self, item: Thing) -> Read:
        """Read it; in a thread of its own."""

    def compute(self, item: Thing, read: Read) -> Made:
        """Compute; in the thread that called."""

    def write(self, item: Thing, made: Made) -> Written:
        """Write it; in another thread of its own."""

    def drop(self, made: Made) -> None:
        """Give up what was computed and is not going to be written."""

    def done(self, item: Thing, result: Written | DataError) -> None:
        """Take note of what became of it; in the thread that called."""


class Overlapped(Generic[Item, Read, Made, Result]):
    """Computes one thing while the next is read and the one before is written; never more than these three.

    Args:
        parts: what is done.
        has_room: whether there is memory to read ahead, given what is computed meanwhile; else the next is
            read when that is done.
    """

    def __init__(
        self, parts: Parts[Item, Read, Made, Result], has_room: Callable[[Read], bool] = lambda read: True
    ) -> None:
        self._parts = parts
        self._has_room = has_room
        self._writing: tuple[Item, Made, Future[Result]] | None = None

    def run(self, items: Iterable[Item]) -> None:
        """Do all; what was written when an error ends it is noted."""
        with ThreadPoolExecutor(1, "reader") as ahead, ThreadPoolExecutor(1, "writer") as behind:
            try:
                self._run(iter(items), ahead, behind)
                self.note(wait=True)
            finally:
                ahead.shutdown(wait=False, cancel_futures=True)
                if self._writing is not None and self._writing[2].cancel():
                    self._parts.drop(self._writing[1])
                elif self._writing is not None:
                    self.note(wait=True)

    def note(self, *, wait: bool = False) -> None:
        """Take note of what is written by now; long computations call it now and then."""
        if self._writing is None or not (wait or self._writing[2].done()):
            return
        item, _, future = self._writing
        try:
            result: Result | DataError = future.result()
        except DataError as error:
            result = error
        self._writing = None
        self._parts.done(item, result)

    def _run(self, items: Iterator[Item], ahead: ThreadPoolExecutor, behind: ThreadPoolExecutor) -> None:
        def submit(item: Item) -> Future[Read]:
            return ahead.submit(self._parts.read, item)

        for item, reading, following in _with_next(items, submit):
            try:
                read = reading.result()
                if self._has_room(read):
                    following()
                made = self._parts.compute(item, read)
                del read
            except DataError as error:
                self._parts.done(item, error)
                continue
            self.note(wait=True)
            self._writing = item, made, behind.submit(self._parts.write, item, made)
            del made


def _with_next(
    items: Iterator[Item], submit: Callable[[Item], Future[Read]]
) -> Iterator[tuple[Item, Future[Read], Callable[[], None]]]:
    """Yield each item with its future, and what to call to submit the next one already."""
    submitted: deque[tuple[Item, Future[Read]]] = deque()

    def go_on() -> None:
        for item in items:
            submitted.append((item, submit(item)))
            return

    go_on()
    while submitted:
        yield *submitted.popleft(), go_on
        if not submitted:
            go_on()
