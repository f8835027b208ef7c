"""One function over many things: in this process, in local processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from misfm.errors import ConfigError

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

        ahead = 2 * max(1, sum(self._client.ncores().values()))
        flying: deque[tuple[Item, Any]] = deque()
        for item in items:
            flying.append((item, self._client.submit(function, item, pure=False)))
            if len(flying) > ahead:
                yield collect(*flying.popleft())
        while flying:
            yield collect(*flying.popleft())


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

    if scheduler is not None:
        with Client(scheduler, timeout=30) as client:
            yield Pool(client)
        return
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):
        yield Pool(client)
