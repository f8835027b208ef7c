"""Locks between processes that a crash never leaves behind: the system gives them up with their holder."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from misfm.errors import DataError, MisfmError

if sys.platform != "win32":
    import fcntl

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks say, such as Lustre mounted so: then there is no protection."""


class Taken(MisfmError):
    """Another process holds the lock."""


_held: set[tuple[int, str]] = set()
"""What this process holds: thread and path."""


def is_held_here(path: Path) -> bool:
    """Whether this thread holds the lock file ``path``."""
    return _mine(path) in _held


@contextmanager
def hold(
    path: Path, taken: str, *, waiting: Callable[[], None] | None = None, remove: bool = False
) -> Iterator[None]:
    """Hold the lock file ``path``, which is empty, while the context lasts.

    Args:
        path: made where missing, with its folder.
        taken: the sentence raised where another process holds it.
        waiting: called once if another process holds it, which is then waited for.
        remove: remove the file at the end instead of leaving it for the next.

    Raises:
        Taken: another process holds it, and ``waiting`` is None.
        DataError: the file cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise DataError(
                f"Cannot write {path}: {error.strerror}. Free space or choose another folder."
            ) from error
        with file:
            if not try_lock(file):
                if waiting is None or is_held_here(path):  # to wait for oneself would be for ever
                    raise Taken(taken)
                waiting()
                _wait_for(file)
            if not _is_at(file, path):  # its holder removed it
                continue
            _held.add(_mine(path))
            try:
                yield
            finally:
                _held.discard(_mine(path))
                if remove:
                    with suppress(OSError):
                        path.unlink()
            return


def _mine(path: Path) -> tuple[int, str]:
    return threading.get_ident(), os.path.realpath(path)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one of that name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where another process, or another opening of it, has."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _UNSUPPORTED
    return True


def _wait_for(file: IO[bytes]) -> None:
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX)
