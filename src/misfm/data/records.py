"""The volumes of a store as a sequence of records that are parsed when they are touched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from misfm.data.columns import Columns, Look, columns_of, joined_columns
from misfm.data.record import Record


class Records(Sequence[Record]):
    """Some or all volumes of a store, in the order of ``places``; what is asked of all takes no parsing.

    Args:
        columns: of all of them.
        places: which of these, all by default.
    """

    def __init__(self, columns: Columns, places: NDArray[np.int64] | None = None) -> None:
        self._columns = columns
        self._places = np.arange(len(columns)) if places is None else places

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """Return records as such a sequence."""
        return records if isinstance(records, Records) else cls(columns_of(records))

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """Put the volumes of several stores one after the other; ``stores`` says which are of which."""
        columns = joined_columns([part._columns for part in parts])
        starts = np.cumsum([0, *(len(part._columns) for part in parts[:-1])])
        return cls(columns, np.concatenate([part._places + a for part, a in zip(parts, starts, strict=True)]))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> Records: ...

    def __getitem__(self, place: int | slice) -> Record | Records:
        if isinstance(place, slice):
            return Records(self._columns, self._places[place])
        return self._columns.record(int(self._places[place]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records>"

    def take(self, places: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> Records:
        """Return those at some places, in their order, or those that a mask has."""
        return Records(self._columns, self._places[np.asarray(places)] if len(places) else self._places[:0])

    def __add__(self, other: Records) -> Records:
        if other._columns is self._columns:
            return Records(self._columns, np.concatenate([self._places, other._places]))
        return Records.joined([self, other])

    @property
    def ids(self) -> list[str]:
        """Of each."""
        return self._columns.column("id", self._places)

    @property
    def cases(self) -> list[str]:
        """Name of each case."""
        return self._columns.column("case", self._places)

    @property
    def sources(self) -> list[str]:
        """Path of the scan that each came from."""
        return self._columns.column("source", self._places)

    @property
    def fingerprints(self) -> list[str]:
        """Of the scan that each came from."""
        return self._columns.column("fingerprint", self._places)

    @property
    def scans(self) -> set[str]:
        """Fingerprints of all scans, of each channel where a volume has several together."""
        several = self._columns.column("scans", self._places)
        found = zip(several, self.fingerprints, strict=True)
        return {scan for scans, scan_of_all in found for scan in (scans or scan_of_all).split("\n")}

    @property
    def shapes(self) -> NDArray[np.int32]:
        """Voxels (N, 3) of each along (D, H, W)."""
        return self._columns.arrays["shape"][self._places]

    @property
    def anonymised(self) -> NDArray[np.bool_]:
        """Whether each has a mask of what was removed."""
        return self._columns.arrays["anonymised"][self._places].astype(np.bool_)

    @property
    def least_labels(self) -> NDArray[np.int32]:
        """The lowest label of each, -1 without a label map."""
        return self._columns.arrays["label"][self._places]

    @property
    def stores(self) -> NDArray[np.uint8]:
        """Number of the store that each is in."""
        return self._columns.arrays["store"][self._places]

    @property
    def looks(self) -> tuple[tuple[Look, ...], NDArray[np.int64]]:
        """What the channels of volumes are, each once; and which of these each is."""
        found, first, places = np.unique(
            self._columns.arrays["look"][self._places], return_index=True, return_inverse=True
        )
        order = np.argsort(first)  # of their first appearance
        return tuple(self._columns.looks[found[i]] for i in order), np.argsort(order)[places]


def fingerprint_of(records: Iterable[Record]) -> str:
    """Hash of what volumes hold, whatever their order."""
    return hashlib.sha256("\n".join(sorted(Records.of(records).ids)).encode()).hexdigest()
