"""Names to things: how a network or pretext task in one new file becomes available everywhere."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from misfm.errors import ConfigError

T = TypeVar("T")


def closest(name: str, options: list[str]) -> str:
    """Return a hint for a mistyped ``name``: the nearest of ``options``, then all of them."""
    near = difflib.get_close_matches(name[:100], options, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}{'Choose' if hint else 'choose'} from: {', '.join(options)}."


class Registry(Generic[T]):
    """Things of one kind under their names.

    Args:
        kind: what the entries are, for messages ("network", "pretext task").
        package: the package whose modules register entries; all of them are imported at the first look-up,
            so that a new entry is one new file and no list has to be edited.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._complete = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorate an entry with the names it is known by."""

        def add(entry: T) -> T:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self._kind} '{name}' is registered twice")
                self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._import_all()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            ConfigError: no such entry; the message offers the nearest name, then all names.
        """
        self._import_all()
        if name not in self._entries:
            raise ConfigError(f"There is no {self._kind} '{name}'; {closest(name, self.names())}")
        return self._entries[name]

    def _import_all(self) -> None:
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._complete = True
