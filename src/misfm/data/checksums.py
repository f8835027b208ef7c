"""Checksums against accidents: a flipped bit, a file that was cut, two files that changed places.

CRC-32 reads nearly 4 GB a second, notices every change of one or two bits, and misses one in four billion of
all others. It is no seal against people.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAKE_AGAIN = "run again what made the store (misfm ingest, or the training it belongs to)"
"""What to do about damage, in the middle of a sentence."""
_PIECE = 1 << 20
_verified: set[int] = set()
"""Hashes of (path, checksum, state) of files that this process has read whole and found right."""


class Checksum(NamedTuple):
    """CRC-32 and number of bytes."""

    crc: int
    size: int


def checksum_of(content: bytes) -> Checksum:
    """Checksum of what is in memory."""
    return Checksum(zlib.crc32(content), len(content))


def checksum_of_json(content: Mapping[str, Any]) -> int:
    """CRC-32 of JSON, however it is laid out; it is kept in the file itself, under ``checksum``."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def checksum_of_file(path: Path) -> Checksum:
    """Checksum of a file, read piece by piece."""
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return Checksum(crc, size)


def fault_of_file(path: Path, expected: Checksum, *, again: bool = False) -> str:
    """What is wrong with a file, in words that follow its name; empty where nothing is.

    It is read once in a process, for as long as nobody writes it anew.

    Args:
        path: the file.
        expected: what it had when it was written.
        again: read it even if this process has.
    """
    try:
        state = path.stat()
        if state.st_size != expected.size:
            return f"is damaged: it has {state.st_size} bytes instead of {expected.size}"
        # Numbers instead of the tuples themselves: a loader of 100,000 volumes keeps 6 MB of them.
        key = hash((str(path), expected, state.st_ino, state.st_mtime_ns))
        if key in _verified and not again:
            return ""
        if checksum_of_file(path) != expected:
            return "is damaged: its checksum differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    _verified.add(key)
    return ""
