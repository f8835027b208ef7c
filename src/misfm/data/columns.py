"""What is asked of all volumes of a store at once, in columns instead of a record each.

A list of 100,000 records takes seconds to parse and half a gigabyte. As columns it is a file that is mapped
into memory, in which the text of each record lies behind the columns and is parsed when it is touched. The
file is made from the index, bears the state that it was made of, and is made again after every change.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from misfm.data.intensity import Kind
from misfm.data.record import Record
from misfm.errors import DataError
from misfm.files import write_bytes

TEXTS = ("id", "case", "source", "fingerprint", "scans")
"""Columns of text; what a volume has several scans of stands in lines of their own."""

_MAGIC = b"misfm columns 1\n"
_HEAD = struct.Struct("<IIQ")
"""Checksum of what follows but for the texts of records, bytes of the header, bytes with that checksum."""

State = tuple[int, ...]
"""Of an index; another one after every change."""


class Look(NamedTuple):
    """What the channels of a volume are."""

    kinds: tuple[Kind, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Columns:
    """Volumes as columns, all of the same length.

    Attributes:
        arrays: by name: ``shape`` (N, 3); ``look``, a place in ``looks``; ``anonymised``, 0 or 1; ``label``,
            the lowest or -1 without a label map; ``check``, of the row; ``store``, where there are several;
            ``start`` and ``end`` of the record's text in ``texts``, and ``part``, in which of them; for each
            column of text its bytes and the end of each row's.
        looks: what channels are, each once.
        texts: of records, in JSON.
        checked: whether ``check`` is known.
        where: what to name where a text is damaged.
    """

    arrays: dict[str, NDArray[Any]]
    looks: tuple[Look, ...]
    texts: tuple[bytes | memoryview, ...]
    checked: bool
    where: str

    def __len__(self) -> int:
        return len(self.arrays["look"])

    def __reduce__(self) -> tuple[Any, ...]:
        texts = tuple(map(bytes, self.texts))  # of a file that is mapped, its content travels
        arrays = {name: np.array(array) for name, array in self.arrays.items()}
        return Columns, (arrays, self.looks, texts, self.checked, self.where)

    def text(self, name: str, place: int) -> str:
        """One row of a column of text."""
        ends, content = self.arrays[f"{name}_end"], self.arrays[name]
        start = int(ends[place - 1]) if place else 0
        return content[start : int(ends[place])].tobytes().decode()

    def column(self, name: str, places: NDArray[np.int64]) -> list[str]:
        """Rows of a column of text."""
        ends, content = self.arrays[f"{name}_end"], self.arrays[name].tobytes()
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])[places].tolist()
        return [content[a:b].decode() for a, b in zip(starts, ends[places].tolist(), strict=True)]

    def record(self, place: int) -> Record:
        """Parse the record of a row.

        Raises:
            DataError: its text was damaged.
        """
        part, start, end = (int(self.arrays[name][place]) for name in ("part", "start", "end"))
        text = bytes(self.texts[part][start:end])
        row = [self.text(name, place) for name in TEXTS[:4]]
        try:
            if self.checked and row_check([*row, text.decode()]) != int(self.arrays["check"][place]):
                raise ValueError
            return Record.model_validate_json(text)
        except ValueError as error:
            raise DataError(
                f"{self.where} is damaged (the row of {row[1]:.100}); delete it: what next reads the "
                "store makes it again."
            ) from error

    def write(self, path: Path, state: State) -> None:
        """Write them to a file, atomically.

        Raises:
            DataError: it cannot be written.
        """
        starts, content, length = {}, [], 0
        for name, array in self.arrays.items():
            part = np.ascontiguousarray(array).tobytes()
            padding = -len(part) % 8
            starts[name] = (array.dtype.str, array.shape, length)
            content.append(part + bytes(padding))
            length += len(part) + padding
        looks = [[look.kinds, look.names] for look in self.looks]
        header = json.dumps({"state": state, "looks": looks, "checked": self.checked, "arrays": starts})
        encoded = header.encode() + b" " * (-(len(_MAGIC) + _HEAD.size + len(header.encode())) % 8)
        rest = b"".join([encoded, *content])
        head = _HEAD.pack(zlib.crc32(rest), len(encoded), len(rest))
        write_bytes(path, b"".join([_MAGIC, head, rest, *self.texts]))


def read_columns(path: Path, state: State) -> Columns | None:
    """Map what :meth:`Columns.write` wrote; None where there is no such file, of another state, or damaged.

    Args:
        path: the file.
        state: that it has to be of.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = len(_MAGIC) + _HEAD.size
        crc, size, checked = _HEAD.unpack_from(content, len(_MAGIC))
        end = begin + checked
        if bytes(content[: len(_MAGIC)]) != _MAGIC or zlib.crc32(content[begin:end]) != crc:
            return None
        header = json.loads(bytes(content[begin : begin + size]))
        if tuple(header["state"]) != state:
            return None
        arrays = {}
        for name, (dtype, shape, start) in header["arrays"].items():
            array = np.frombuffer(content, np.dtype(dtype), math.prod(shape), begin + size + start)
            arrays[name] = array.reshape(shape)
        looks = tuple(Look(tuple(kinds), tuple(names)) for kinds, names in header["looks"])
        whole = len(content) - end == int(arrays["end"].max(initial=0))
        return Columns(arrays, looks, (content[end:],), header["checked"], str(path)) if whole else None
    except (OSError, ValueError, struct.error):
        return None


class Rows:
    """Collects rows of an index into columns, in their order.

    Args:
        checked: whether rows have checksums.
        where: what to name where one was damaged.
    """

    def __init__(self, *, checked: bool, where: str) -> None:
        self._checked, self._where = checked, where
        self._numbers: list[tuple[int, ...]] = []
        self._checks: list[int] = []
        self._columns: dict[str, list[bytes]] = {name: [] for name in TEXTS}
        self._texts: list[bytes] = []
        self._looks: dict[Look, int] = {}

    def add(self, record: Record, text: str, check: int | None) -> None:
        """Add a record, its text and the checksum of its row."""
        look = Look(record.channel_kinds, record.channel_names)
        label = -1 if record.labels is None else min(record.labels, default=-1)
        place = self._looks.setdefault(look, len(self._looks))
        self._numbers.append((*record.shape, place, label, record.anonymised))
        self._checks.append(check or 0)
        for name in TEXTS[:4]:
            self._columns[name].append(getattr(record, name).encode())
        self._columns["scans"].append("\n".join(record.scans).encode())
        self._texts.append(text.encode())

    def columns(self) -> Columns:
        """Return what was added."""
        numbers = np.array(self._numbers, dtype=np.int32).reshape(-1, 6)
        ends = np.cumsum([len(text) for text in self._texts], dtype=np.int64)
        arrays: dict[str, NDArray[Any]] = {
            "shape": numbers[:, :3].copy(),
            "look": numbers[:, 3].copy(),
            "label": numbers[:, 4].copy(),
            "anonymised": numbers[:, 5].astype(np.uint8),
            "check": np.array(self._checks, dtype=np.int64),
            "start": ends - np.array([len(text) for text in self._texts], dtype=np.int64),
            "end": ends,
            "part": np.zeros(len(numbers), dtype=np.uint8),
            "store": np.zeros(len(numbers), dtype=np.uint8),
        }
        for name, rows in self._columns.items():
            arrays[name] = np.frombuffer(b"".join(rows), np.uint8)
            arrays[f"{name}_end"] = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return Columns(arrays, tuple(self._looks), (b"".join(self._texts),), self._checked, self._where)


def columns_of(records: Iterable[Record]) -> Columns:
    """Return records as columns."""
    rows = Rows(checked=False, where="a record")
    for record in records:
        rows.add(record, record.model_dump_json(), None)
    return rows.columns()


def joined_columns(parts: Sequence[Columns]) -> Columns:
    """Put the volumes of several stores one after the other."""
    looks = list(dict.fromkeys(look for part in parts for look in part.looks))
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in parts[0].arrays}
    texts, before = 0, dict.fromkeys(TEXTS, 0)
    for number, part in enumerate(parts):
        numbers = np.array([looks.index(look) for look in part.looks] or [0], dtype=np.int32)
        for name, array in part.arrays.items():
            if name == "look":
                array = numbers[array]
            elif name == "part":
                array = array + np.uint8(texts)
            elif name == "store":
                array = np.full_like(array, number)
            elif name.endswith("_end"):
                array = array + before[name.removesuffix("_end")]
            found[name].append(array)
        texts += len(part.texts)
        before = {name: before[name] + part.arrays[name].nbytes for name in TEXTS}
    arrays = {name: np.concatenate(rows) for name, rows in found.items()}
    contents = tuple(text for part in parts for text in part.texts)
    checked = all(part.checked for part in parts)
    return Columns(arrays, tuple(looks), contents, checked, ", ".join(part.where for part in parts))


def row_check(columns: Sequence[Any]) -> int:
    """Checksum of a row's text columns, whatever a damaged row holds in their place."""
    return zlib.crc32(ascii(tuple(columns)).encode())
