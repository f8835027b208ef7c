"""The store: a folder of preprocessed volumes whose patches are read without loading the volume.

``store.json`` holds the format and the settings, ``index.sqlite`` the records, ``volumes/ID.b2nd`` an image,
``volumes/ID.label.b2nd`` its label map and ``volumes/ID.anon.b2nd`` the mask of what was removed to make
the patient unknown, where there are any. A volume belongs to the store once its row is committed, which
happens after its files are complete on disk: a killed ingest leaves at most a file that the next overwrites.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from misfm.data.record import Entry, IngestSettings, Record, fingerprint_of
from misfm.documents import read_json
from misfm.errors import ConfigError, DataError
from misfm.files import make_folder, write_bytes, write_json
from misfm.settings import as_option
from misfm.volume import Box, Shape, Volume, triple

FORMAT_VERSION = 1
IMAGE, LABEL, ANONYMISED = "", ".label", ".anon"
"""What tells the files of a volume apart."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS volumes (
    id TEXT PRIMARY KEY, case_name TEXT, source TEXT, fingerprint TEXT, record TEXT,
    anchors BLOB, label_anchors BLOB
);
CREATE INDEX IF NOT EXISTS by_fingerprint ON volumes (fingerprint);
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, stamp TEXT, id TEXT);
CREATE TABLE IF NOT EXISTS quarantine (source TEXT PRIMARY KEY, reason TEXT);
"""


class Store:
    """An existing store; make one with ``Store.create`` or ``Store.open``.

    Reading opens its files anew each time (0.2 ms), so one store serves any number of threads and forks.

    Attributes:
        path: the folder.
        settings: how its volumes were made.
    """

    def __init__(self, path: Path, settings: IngestSettings) -> None:
        self.path = path
        self.settings = settings

    @classmethod
    def create(cls, path: str | Path, settings: IngestSettings) -> Store:
        """Make a store, or open the one that is there if its settings are the same.

        Raises:
            ConfigError: a store with other settings is there.
            DataError: the folder cannot be written.
        """
        path = Path(path)
        if (path / "store.json").exists():
            store = cls.open(path)
            if store.settings != settings:
                raise ConfigError(
                    f"The store {path} was made with {_describe(store.settings)}, not {_describe(settings)}; "
                    "use the same settings or another folder."
                )
            return store
        store = cls(path, settings)
        make_folder(path / "volumes")
        with store._database(write=True) as database:
            database.executescript(_SCHEMA)
        content = {"format_version": FORMAT_VERSION, "settings": settings.model_dump(mode="json")}
        write_json(path / "store.json", content)
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Raises:
            DataError: no store there, or one of a newer format.
        """
        path = Path(path)
        try:
            content = read_json(path / "store.json")
            version, settings = content["format_version"], IngestSettings(**content["settings"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{path} is not a store; make one with 'misfm ingest SOURCE --store {path}'."
            ) from error
        if version != FORMAT_VERSION:
            raise DataError(
                f"The store {path} has format {version}, not {FORMAT_VERSION}; ingest its scans again."
            )
        return cls(path, settings)

    def add(self, entry: Entry, stamp: str = "") -> Record:
        """Add a volume: its files first, then its row; one from the same source is replaced.

        Args:
            entry: see ``make_entry``.
            stamp: state of the source file, see ``is_known``.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        record = entry.record
        for part, content in ((IMAGE, entry.image), (LABEL, entry.label), (ANONYMISED, entry.anonymised)):
            if content is not None:
                write_bytes(self._file(record.id, part), content)
        row = (record.id, record.case, record.source, record.fingerprint, record.model_dump_json())
        blobs = (entry.anchors.tobytes(), entry.label_anchors.tobytes())
        with self._replacing(record.source, keep=record.id) as database:
            database.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?)", row + blobs)
            self._remember(database, record.source, stamp, record.id)
        return record

    def records(self) -> list[Record]:
        """All volumes, ordered by case name, then id."""
        with self._database() as database:
            rows = database.execute("SELECT record FROM volumes ORDER BY case_name, id").fetchall()
        return [Record.model_validate_json(text) for (text,) in rows]

    def find(self, fingerprint: str) -> Record | None:
        """The volume made from voxels with this fingerprint, if any."""
        with self._database() as database:
            query = "SELECT record FROM volumes WHERE fingerprint = ? ORDER BY id"
            row = database.execute(query, (fingerprint,)).fetchone()
        return None if row is None else Record.model_validate_json(row[0])

    def read(self, record: Record) -> Volume:
        """The whole image (C, D, H, W) as stored."""
        box = Box((0, 0, 0), record.shape)
        return Volume(self.read_patch(record, box)[0], record.affine)

    def read_label(self, record: Record) -> Volume:
        """The whole label map (1, D, H, W); see ``read_label_patch``."""
        box = Box((0, 0, 0), record.shape)
        return Volume(self.read_label_patch(record, box)[0], record.affine)

    def read_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """Read part of an image, decompressing only the blocks it touches.

        Args:
            record: one of ``records()``.
            box: the part; where it reaches outside the volume it gets the lowest value (air, background).

        Returns:
            Voxels (C, d, h, w) as stored, int16 or float32, not normalised; and which part of the patch lies
            inside the volume.

        Raises:
            DataError: a damaged store.
        """
        return self._read(record, self._file(record.id, IMAGE), box, record.lowest)

    def read_label_patch(self, record: Record, box: Box) -> tuple[NDArray[Any], Box]:
        """Read part of a label map, (1, d, h, w) padded with 0; see ``read_patch``.

        Raises:
            DataError: a volume without label map, or a damaged store.
        """
        if record.labels is None:
            raise DataError(
                f"Case {record.case} of the store {self.path} has no label map; use labelled cases."
            )
        return self._read(record, self._file(record.id, LABEL), box, (0,))

    def read_anonymised_patch(self, record: Record, box: Box) -> NDArray[np.bool_]:
        """Which voxels (d, h, w) of a box were removed to make the patient unknown; none outside the volume.

        Raises:
            DataError: a damaged store.
        """
        if not record.anonymised:
            return np.zeros(box.size, dtype=np.bool_)
        mask, _ = self._read(record, self._file(record.id, ANONYMISED), box, (0,))
        hidden: NDArray[np.bool_] = mask[0].astype(np.bool_)
        return hidden

    def anchors(self, record: Record) -> NDArray[np.int16]:
        """Coordinates (N, 3) of up to 4096 random content voxels (body, not air) of an image."""
        return self._blob(record, "anchors").reshape(-1, 3)

    def label_anchors(self, record: Record) -> dict[int, NDArray[np.int16]]:
        """Coordinates (N, 3) of up to 1024 random voxels of each label, the background left out."""
        rows = self._blob(record, "label_anchors").reshape(-1, 4)
        return {int(value): rows[rows[:, 0] == value, 1:] for value in np.unique(rows[:, 0])}

    def fingerprint(self) -> str:
        """Hash of what the store holds, whatever the order it came in."""
        return fingerprint_of(self.records())

    def is_known(self, source: str, stamp: str) -> bool:
        """Whether a source was ingested in this very state (``stamp``: its size and time of change)."""
        with self._database() as database:
            query = "SELECT 1 FROM sources JOIN volumes USING (id) WHERE sources.source = ? AND stamp = ?"
            return database.execute(query, (source, stamp)).fetchone() is not None

    def add_duplicate(self, source: str, stamp: str, record: Record) -> None:
        """Note that a source holds the same voxels as a volume that is there; what it held before goes."""
        with self._replacing(source, keep=record.id) as database:
            self._remember(database, source, stamp, record.id)

    def quarantine(self, source: str, reason: str) -> None:
        """Note that a source cannot be used and why, forgotten once it can; what it held before goes."""
        with self._replacing(source) as database:
            database.execute("DELETE FROM sources WHERE source = ?", (source,))
            database.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?)", (source, reason))

    def quarantined(self) -> list[tuple[str, str]]:
        """Sources that could not be used, each with the reason, ordered by source."""
        with self._database() as database:
            return database.execute("SELECT source, reason FROM quarantine ORDER BY source").fetchall()

    def _file(self, identity: str, part: str) -> Path:
        return self.path / "volumes" / f"{identity}{part}.b2nd"

    @contextmanager
    def _replacing(self, source: str, *, keep: str = "") -> Iterator[sqlite3.Connection]:
        """A transaction that also removes the volumes made from a source, but for the one to keep."""
        with self._database(write=True) as database:
            query = "SELECT id FROM volumes WHERE source = ? AND id != ?"
            outdated = [old for (old,) in database.execute(query, (source, keep))]
            for old in outdated:
                # What was a duplicate of the outdated volume is no longer known, so the next ingest adds it.
                database.execute("DELETE FROM sources WHERE id = ?", (old,))
                database.execute("DELETE FROM volumes WHERE id = ?", (old,))
            yield database
        for old in outdated:
            for part in (IMAGE, LABEL, ANONYMISED):
                with suppress(OSError):
                    self._file(old, part).unlink()

    def _remember(self, database: sqlite3.Connection, source: str, stamp: str, identity: str) -> None:
        database.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (source, stamp, identity))
        database.execute("DELETE FROM quarantine WHERE source = ?", (source,))

    def _blob(self, record: Record, column: str) -> NDArray[np.int16]:
        with self._database() as database:
            row = database.execute(f"SELECT {column} FROM volumes WHERE id = ?", (record.id,)).fetchone()
        if row is None:
            raise DataError(f"The store {self.path} has no volume {record.id}; open it again.")
        return np.frombuffer(row[0], dtype=np.int16)

    @contextmanager
    def _database(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, committed at the end unless something was raised."""
        address = f"{(self.path / 'index.sqlite').absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        try:
            connection = sqlite3.connect(address, uri=True, timeout=30)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            what = "written" if write else "read"
            raise DataError(
                f"The index of the store {self.path} cannot be {what} ({error}); check free space "
                "and permissions."
            ) from error

    def _read(
        self, record: Record, file: Path, box: Box, fill: tuple[float, ...]
    ) -> tuple[NDArray[Any], Box]:
        inside = _overlap(box, record.shape)
        empty = 0 in inside.size
        try:
            array = blosc2.open(str(file), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
            voxels = array[:, *inside.slices] if not empty else np.empty((len(fill), 0, 0, 0), array.dtype)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{file} is missing or damaged; delete the store and ingest its scans again."
            ) from error
        if inside == box:
            return voxels, Box((0, 0, 0), box.size)
        patch = np.empty((len(fill), *box.size), dtype=voxels.dtype)
        patch[...] = np.array(fill).reshape(-1, 1, 1, 1)
        valid = _moved(inside, box.start)
        if not empty:
            patch[:, *valid.slices] = voxels
        return patch, valid


def _overlap(box: Box, shape: Shape) -> Box:
    """The part of a box that lies in a volume; of size 0, 0, 0 if there is none."""
    start = [max(0, a) for a in box.start]
    size = [min(stop, side) - a for a, stop, side in zip(start, box.stop, shape, strict=True)]
    if min(size) <= 0:
        return Box(box.start, (0, 0, 0))
    return Box(triple(start), triple(size))


def _moved(box: Box, origin: Shape) -> Box:
    """The box as seen from ``origin``."""
    return Box(triple(a - b for a, b in zip(box.start, origin, strict=True)), box.size)


def _describe(settings: IngestSettings) -> str:
    return f"spacing {as_option(settings.spacing)} and intensity {settings.intensity}"
