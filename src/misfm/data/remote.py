"""Stores on object storage or web servers: what is read of them is copied to this machine first, once."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from misfm.documents import read_json
from misfm.errors import ConfigError, DataError
from misfm.files import atomic_write, write_json
from misfm.terminal import logger

INDEX = "index.sqlite"
_STATE = "index.source.json"
"""In the folder of copies: what the index was like at its source when it was copied."""

_SURE = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "mtime")
"""What servers call that which changes whenever a file does."""


def is_remote(store: str) -> bool:
    """Whether the name of a store is an address, as ``s3://bucket/store``."""
    return "://" in store


class _Nothing(Exception):
    """There is no such file."""


class RemoteFolder:
    """A folder at an address, and one of copies here. It may be pickled, and used in any process.

    Args:
        url: ``s3://``, ``https://`` or whatever else fsspec knows.
        copies: made where missing.
    """

    def __init__(self, url: str, copies: Path) -> None:
        self.url = url.rstrip("/")
        self.copies = copies
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def fetch(self, name: str) -> bool:
        """Copy a file, whether or not there is a copy; returns whether it is there.

        Raises:
            DataError: the address does not answer, or the copy cannot be written.
            ConfigError: a library is missing for it.
        """
        system, root = self._open()
        try:
            with atomic_write(self.copies / name) as temporary:
                try:
                    system.get_file(f"{root}/{name}", str(temporary))
                except FileNotFoundError:
                    raise _Nothing from None
                except Exception as error:  # an OSError here would be taken for one of the copy
                    raise self._failed(name, error) from error
        except _Nothing:
            return False
        return True

    def fetch_index(self) -> None:
        """Copy what says which volumes there are, the index only where it has changed.

        Raises:
            DataError: there is no store.
        """
        if not self.fetch("store.json"):
            raise DataError(f"{self.url} is not a store: it has no store.json.")
        state = self._state(INDEX)
        with suppress(OSError, ValueError):
            if state and (self.copies / INDEX).exists() and read_json(self.copies / _STATE) == state:
                return
        logger.info("copying the index of %s", self.url)
        for name in (_STATE, f"{INDEX}-journal"):
            (self.copies / name).unlink(missing_ok=True)
        # Of a process that was killed while it wrote: who reads the copy first undoes it.
        self.fetch(f"{INDEX}-journal")
        if not self.fetch(INDEX):
            raise DataError(f"{self.url} is not a store: it has no {INDEX}.")
        write_json(self.copies / _STATE, state)

    def _state(self, name: str) -> dict[str, str]:
        """What changes whenever a file does; empty where its server says no such thing.

        A time in whole seconds is none: a file may change twice in one.
        """
        system, root = self._open()
        try:
            found = system.info(f"{root}/{name}")
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._failed(name, error) from error
        return {key: str(found[key]) for key in _SURE if found.get(key)}

    def _open(self) -> tuple[Any, str]:
        """The file system, opened by this process, and the folder's name in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            try:
                system, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
            except ImportError as error:
                protocol = self.url.partition("://")[0]
                raise ConfigError(
                    f"{protocol}:// needs another package ({error}): install it beside misfm."
                ) from error
            except ValueError as error:
                raise ConfigError(f"{self.url} cannot be read as a store ({error}).") from error
            self._opened = os.getpid(), system, str(root).rstrip("/")
        return self._opened[1:]

    def _failed(self, name: str, error: Exception) -> DataError:
        reason = str(error) or type(error).__name__
        return DataError(f"{self.url}/{name} cannot be read ({reason}); check the address and your access.")


def copies_of(url: str, folder: Path) -> Path:
    """Where copies of a store at an address lie within a folder for several."""
    return folder / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
