"""Writing files so that a reader sees either the old content or the new, never half of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from misfm.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it becomes ``path``, else it is removed.

    Raises:
        DataError: the folder cannot be made or written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a kill left is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"Cannot write {path}: {reason}. Free space or choose another folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    """Write a text file in UTF-8 atomically; see :func:`atomic_write`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; see :func:`atomic_write`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
