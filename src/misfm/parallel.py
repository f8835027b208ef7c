"""One function over many things: in this process, in local processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from misfm.errors import ConfigError
from misfm.signals import PATIENCE, Interrupted, request, stop_if_requested, withheld, working_for

MOST_PER_PROCESSOR = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool:
    """Where work is done.

    Args:
        client: of a Dask cluster; None works in this process.
    """

    def __init__(self, client: Any = None) -> None:
        self._client = client
        self._name = secrets.token_hex(8)
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

        if self._client is not None:
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
            client = stack.enter_context(Client(scheduler, timeout=30))
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
