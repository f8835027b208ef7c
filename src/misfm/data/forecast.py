"""What an ingest will take in time, disk and memory, said after its first scans."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from misfm.data.quarantine import Refusal
from misfm.data.record import Checks, Entry
from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.memory import available_bytes
from misfm.terminal import logger

FEWEST = 40
"""Scans from which on a forecast is made: fewer are done in a minute or two."""
MEASURED = 8
"""Scans that it is made of, at least; two for each process that works on them."""
FAR_TOO_MUCH = 2.0
"""Of what is free: beyond that an ingest ends before it fills the disk. The first scans need not be like the
others, so that it only warns below."""
_OVERHEAD = 12_000
"""Bytes of a volume beside its voxels: its places and its row."""


class Forecast:
    """Watches the first scans of an ingest.

    Args:
        scans: those to come.
        folder: of the store.
        at_once: scans that are worked on at a time.
    """

    def __init__(self, scans: Sequence[ScanSource], folder: Path, *, at_once: int) -> None:
        self._folder, self._at_once = folder, at_once
        self._wanted = max(MEASURED, 2 * at_once) if len(scans) >= FEWEST else 0
        self._number = len(scans)
        self._bytes = sum(map(_bytes_of, scans)) if self._wanted else 0
        self._start = time.monotonic()
        self._seen = self._read = self._written = self._memory = 0

    def note(self, scan: ScanSource, result: Entry | Refusal) -> None:
        """Note that a scan is prepared; says after enough of them what all will take.

        Raises:
            DataError: the disk holds less than half of it.
        """
        if self._seen >= self._wanted:
            return
        self._seen += 1
        self._read += _bytes_of(scan)
        if isinstance(result, Entry):
            self._written += _size_of(result)
            self._memory = max(self._memory, result.memory)
        if self._seen == self._wanted:
            self._tell()

    def _tell(self) -> None:
        share = self._read / self._bytes if self._bytes and self._read else self._seen / self._number
        seconds = (time.monotonic() - self._start) * (1 / share - 1)
        needed = self._written / share - self._written
        free = shutil.disk_usage(self._folder).free
        logger.info(
            "About %s and %s of disk for the %s scans to come, judging by the first %d (%s are free), "
            "and up to %s of memory in each process.",
            duration(seconds),
            amount(needed),
            f"{self._number - self._seen:,}",
            self._seen,
            amount(free),
            amount(self._memory),
        )
        if self._memory * self._at_once > available_bytes() + self._memory:
            logger.warning("That is more memory than this machine has left: use fewer workers.")
        if needed > FAR_TOO_MUCH * free:
            raise DataError(
                f"The store {self._folder} would need about {amount(needed)} more and its disk has "
                f"{amount(free)} left: free space, choose another folder, or give a coarser --spacing."
            )
        if needed > free:
            logger.warning(
                "The disk of %s will probably be full before that: free space; the same command given again "
                "goes on.",
                self._folder,
            )


def duration(seconds: float) -> str:
    """Return a time as sentences have it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def amount(num_bytes: float) -> str:
    """Return an amount of disk or memory as sentences have it."""
    for size, unit in ((1e12, "TB"), (1e9, "GB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e6:.0f} MB"


def _bytes_of(scan: ScanSource) -> int:
    """Size of the files of a scan."""
    return sum(int(size) for size in re.findall(r"(\d+) bytes", scan.stamp))


def _size_of(entry: Entry) -> int:
    """Bytes that an entry takes in a store."""
    checks: Checks = entry.record.checks or entry.checks()
    parts = (checks.image, checks.label, checks.anonymised)
    return _OVERHEAD + sum(part.size for part in parts if part is not None)
