"""Writing files so that a reader sees either the old content or the new, never half of it."""

from __future__ import annotations

import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from misfm.errors import DataError
from misfm.locks import try_lock
from misfm.text import printable


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path``, else it is removed.

    Each writer has a temporary file of its own, so two processes never write into one. What killed writers of
    the same path left behind is removed.

    Raises:
        DataError: the folder cannot be made or written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
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


def _temporary_file(path: Path) -> IO[bytes]:
    """Make a file beside ``path`` whose lock says that its writer lives."""
    while True:
        file = open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), "xb")  # noqa: SIM115
        # Another process that tidies up may have come between making and locking.
        if try_lock(file) and os.path.exists(file.name):
            return file
        file.close()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
        folder: not those below it.
        name: of the files they would have become.
    """
    pattern = name if name == "*" else glob.escape(name)
    for leftover in folder.glob(f".{pattern}.*.tmp"):
        with suppress(OSError), leftover.open("ab") as file:
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


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; see :func:`atomic_write`. Names in it are made printable."""
    write_bytes(path, printable(text).encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; see :func:`atomic_write`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
