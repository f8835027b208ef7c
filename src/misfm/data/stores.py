"""What a pretraining reads its scans from: a store, one at an address, or several as if they were one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.data.record import Record
from misfm.data.records import Records
from misfm.data.remote import RemoteFolder, copies_of, is_remote
from misfm.data.store import Store, describe_settings
from misfm.errors import ConfigError
from misfm.volume import Box


class JoinedStores(Store):
    """Several stores that are read as one; a volume that several hold is of the first.

    Args:
        stores: at least one, all made with the same settings.

    Raises:
        ConfigError: their settings differ.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        first = stores[0]
        super().__init__(first.path, first.settings, pseudonymous=any(s.pseudonymous for s in stores))
        for store in stores:
            if store.settings != first.settings:
                raise ConfigError(
                    f"The stores {first.path} and {store.path} cannot be pretrained on together: one was "
                    f"made with {describe_settings(first.settings)}, the other with "
                    f"{describe_settings(store.settings)}; ingest the scans of one again, like the other's."
                )
        self._stores = tuple(stores)
        listed = [store.records() for store in stores]
        self._ids = [np.sort(np.array(records.ids, dtype="S")) for records in listed]
        self._records = _without_copies(Records.joined(listed))

    @property
    def names(self) -> tuple[str, ...]:
        """Of each store."""
        return tuple(name for store in self._stores for name in store.names)

    def records(self) -> Records:
        """All volumes of all stores, as they were when these were opened."""
        return self._records

    def read_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """See :meth:`Store.read_patch`."""
        return self._store_of(record).read_patch(record, box)

    def read_label_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """See :meth:`Store.read_label_patch`."""
        return self._store_of(record).read_label_patch(record, box)

    def read_anonymised_patch(self, record: Record, box: Box) -> NDArray[np.bool_]:
        """See :meth:`Store.read_anonymised_patch`."""
        return self._store_of(record).read_anonymised_patch(record, box)

    def anchors(self, record: Record) -> NDArray[np.int16]:
        """See :meth:`Store.anchors`."""
        return self._store_of(record).anchors(record)

    def label_anchors(self, record: Record) -> dict[int, NDArray[np.int16]]:
        """See :meth:`Store.label_anchors`."""
        return self._store_of(record).label_anchors(record)

    def _store_of(self, record: Record) -> Store:
        identity = np.bytes_(record.id.encode())
        for ids, store in zip(self._ids, self._stores, strict=True):
            place = int(np.searchsorted(ids, identity))
            if place < len(ids) and ids[place] == identity:
                return store
        return self._stores[0]


def _without_copies(records: Records) -> Records:
    """Leave out volumes that an earlier store holds."""
    _, first = np.unique(np.array(records.ids, dtype="S"), return_index=True)
    return records.take(np.sort(first)) if len(first) < len(records) else records


def open_stores(names: Sequence[str], copies: Path) -> Store:
    """Open stores to read of them; several are read as one.

    Args:
        names: folders, or addresses such as ``s3://bucket/store``.
        copies: folder for what is read of stores at addresses; made where it is needed.

    Raises:
        DataError: no store there, or an address that does not answer.
        ConfigError: stores that were made with different settings, or an address that takes another package.
    """
    stores = [_open_remote(name, copies) if is_remote(name) else Store.open(name) for name in names]
    return stores[0] if len(stores) == 1 else JoinedStores(stores)


def _open_remote(url: str, copies: Path) -> Store:
    source = RemoteFolder(url, copies_of(url, copies))
    source.fetch_index()
    return Store.open(source.copies, source=source)
