"""Writing files so that a reader sees either the old content or the new, never half of it."""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from misfm.documents import parse_json, read_whole
from misfm.errors import DataError
from misfm.locks import try_lock
from misfm.text import printable

CHECKSUMS = "checksums.json"
"""In a folder: CRC-32 of those of its files that are read back, each with the one before, for a kill may come
between the two files."""

_tidied: set[Path] = set()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path``, else it is removed.

    Each writer has a temporary file of its own, so two processes never write into one. What killed writers
    left behind is removed when a process first writes to a folder.

    Raises:
        DataError: the folder cannot be made or written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy_once(path.parent)
        with _temporary_file(path) as file:
            temporary = Path(file.name)
            try:
                yield temporary
                os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Cannot write {path}: {reason}. Free space or choose another folder.") from error


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, for what waits to be written; it is removed."""
    with _temporary_file(path) as file:
        try:
            yield Path(file.name)
        finally:
            with suppress(OSError):
                Path(file.name).unlink(missing_ok=True)


def _temporary_file(path: Path) -> IO[bytes]:
    """Make a file beside ``path`` whose lock says that its writer lives."""
    while True:
        file = open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), "xb")  # noqa: SIM115
        # Another process that tidies up may have come between making and locking.
        if try_lock(file) and os.path.exists(file.name):
            return file
        file.close()


def _tidy_once(folder: Path) -> None:
    """Remove what killed processes left; once, for a folder may hold a hundred thousand files."""
    if folder not in _tidied:
        _tidied.add(folder)
        remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder, not in those below it."""
    for leftover in folder.glob(".*.tmp"):
        with suppress(OSError), leftover.open("r+b") as file:  # not "ab", which makes a file
            if try_lock(file):  # nobody writes into it any more
                leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the system can: else a power failure may undo it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder where it is missing, with those above it.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} cannot be made ({reason}); choose another folder.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that nobody reads before it is renamed.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Cannot write {path}: {reason}. Free space or choose another folder.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; see :func:`atomic_write`. Names in it are made printable."""
    write_bytes(path, printable(text).encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; see :func:`atomic_write`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def checksum(content: bytes, start: int = 0) -> int:
    """CRC-32 of content, or of what was before and the content behind it: against accidents, not malice."""
    return zlib.crc32(content, start)


def write_checked(path: Path, content: bytes) -> None:
    """Write a file atomically, and its checksum beside it, by which :func:`read_checked` knows it.

    A file that holds that content already is left as it is.
    """
    sums = read_checksums(path.parent)
    known, now = sums.get(path.name, []), checksum(content)
    there = checksum(path.read_bytes()) if known and path.is_file() else None
    if known[-1:] != [now]:
        # What was listed last may never have been written: what is there counts, if it was ever listed.
        before = [there] if there in known else known[-1:]
        write_json(path.parent / CHECKSUMS, {**sums, path.name: [*before, now]})
    elif there == now:
        return
    write_bytes(path, content)


def write_checked_json(path: Path, content: Any) -> None:
    """Write JSON as :func:`write_checked` does."""
    write_checked(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def forget_checksum(path: Path) -> None:
    """Let a file change that was written with a checksum."""
    sums = read_checksums(path.parent)
    if sums.pop(path.name, None) is not None:
        write_json(path.parent / CHECKSUMS, sums)


def read_checked(path: Path) -> bytes:
    """Read a file that :func:`write_checked` wrote, or one that was written without a checksum.

    Raises:
        OSError: it cannot be read.
        Malformed: it is no file, or too large.
        DataError: it is not as it was written.
    """
    content = read_whole(path)
    known = read_checksums(path.parent).get(path.name)
    if known is not None and checksum(content) not in known:
        raise DataError(
            f"{path} is not as misfm wrote it: it is damaged or was edited. Put it back as it was, or, to go "
            f"on with it as it is, delete {path.parent / CHECKSUMS}."
        )
    return content


def read_checked_json(path: Path, *, paths: bool = False) -> Any:
    """Read JSON as :func:`read_checked` does; ``paths``: whether it may hold file names that are no UTF-8.

    Raises:
        DataError: it is gone, or not as it was written.
    """
    try:
        return parse_json(read_checked(path), paths=paths)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and give the command again.") from error


def read_checksums(folder: Path) -> dict[str, list[int]]:
    """Return the checksums of the files in a folder; empty where there are none.

    Raises:
        DataError: their file is damaged.
    """
    path = folder / CHECKSUMS
    try:
        found = parse_json(read_whole(path))
        return {str(name): [int(one) for one in sums] for name, sums in found.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged; delete it, and check the files beside it, which are read unchecked then."
        ) from error
