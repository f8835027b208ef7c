"""How much memory there is for what a file asks for, and telling the want of it from other failures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import resource

_CGROUPS = Path("/sys/fs/cgroup")
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""Limits above this are how systems write that there is none."""
_SIGNS = ("allocate memory", "not enough memory", "bad_alloc", "out of memory", "Failed to allocate")
"""What native libraries, which know no MemoryError, say instead."""


def available_bytes() -> int:
    """Return how much memory this process could still take, by the system, its container or job, and limits.

    What other processes take next is not known, so this is an upper bound.
    """
    known = [*_of_system(), *_of_cgroups(), *_of_limits()]
    return max(0, min(known, default=_UNLIMITED))


def most_bytes_so_far() -> int:
    """Return how much memory this process has had at most; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failure is one of memory, of the machine or of a graphics card, whoever raised it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


def in_gib(num_bytes: float) -> str:
    """Return an amount of memory as sentences have it."""
    return f"{num_bytes / 2**30:.1f} GiB"


def _of_system() -> Iterator[int]:
    with suppress(OSError, ValueError):
        rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        yield from (int(row[1]) << 10 for row in rows if row[0] == "MemAvailable:")
        return
    with suppress(OSError, ValueError, AttributeError):  # others tell how much there is, not how much is free
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_cgroups() -> Iterator[int]:
    """What containers and batch systems allow, version 2 and 1: a group is bound by those above it."""
    lines: list[str] = []
    with suppress(OSError):
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        most, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("memory.max", "memory.current")
        )
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no number: "max"
                limit = int((folder / most).read_text())
                if limit < _UNLIMITED:
                    yield limit - int((folder / used).read_text()) + _file_cache(folder)
            if folder == root:
                break


def _file_cache(group: Path) -> int:
    """What a group counts as used and gives back when it is short."""
    with suppress(OSError, ValueError):
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        return max(int(value) for key, value in rows if key in ("inactive_file", "total_inactive_file"))
    return 0


def _of_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 < limit < _UNLIMITED:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            yield limit - pages * resource.getpagesize()
