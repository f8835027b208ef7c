"""The index of a store: the records of its volumes, what they were made from, and what could not be used.

Every row of a volume has a checksum, and all together a number and the XOR of those, kept in the same
transaction: neither a row that changed nor one that vanished is passed over, which SQLite would do.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import MAKE_AGAIN, checksum_of
from misfm.data.quarantine import Evidence, Release
from misfm.data.record import Entry, Record
from misfm.errors import DataError
from misfm.settings import SettingsT

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS volumes (id TEXT PRIMARY KEY, case_name TEXT, source TEXT, fingerprint TEXT,"
    " record TEXT, anchors BLOB, label_anchors BLOB, row_check INTEGER)",
    "CREATE INDEX IF NOT EXISTS by_fingerprint ON volumes (fingerprint)",
    "CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, stamp TEXT, id TEXT)",
    "CREATE TABLE IF NOT EXISTS quarantine (source TEXT PRIMARY KEY, reason TEXT)",
    "CREATE TABLE IF NOT EXISTS evidence (source TEXT PRIMARY KEY, evidence TEXT)",
    "CREATE TABLE IF NOT EXISTS released (source TEXT PRIMARY KEY, release TEXT)",
    "CREATE TABLE IF NOT EXISTS tally (volumes INTEGER, checks INTEGER)",
    "INSERT INTO tally SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM tally)",
)
_OUTSIDE = ("BUSY", "LOCKED", "READONLY", "IOERR", "FULL", "CANTOPEN", "PERM", "AUTH", "NOMEM", "NOLFS")
"""What SQLite says where the fault is not in the file."""

Blob = Literal["anchors", "label_anchors"]


class Index:
    """``index.sqlite`` of a store. Each call opens it anew (0.2 ms), so any thread and fork may call.

    Args:
        path: the file.
        checked: whether its rows have checksums, as those of stores of format 1 have not.
    """

    def __init__(self, path: Path, *, checked: bool = True) -> None:
        self.path = path
        self.checked = checked

    def create(self) -> None:
        """Make the tables that are missing.

        Raises:
            DataError: the index cannot be written, or a row was damaged or lost.
        """
        with self._transaction(write=True) as database:
            for statement in _SCHEMA:
                database.execute(statement)
            self._all_rows(database)

    def records(self) -> list[Record]:
        """All volumes, ordered by case name, then id.

        Raises:
            DataError: the index cannot be read, or a row was damaged or lost.
        """
        with self._transaction() as database:
            rows = self._all_rows(database)
        return [self._record(row) for row in rows]

    def find(self, fingerprint: str) -> Record | None:
        """The volume made from voxels with this fingerprint, if any."""
        with self._transaction() as database:
            rows = self._rows(database, "WHERE fingerprint = ? ORDER BY id LIMIT 1", fingerprint)
        record = self._record(rows[0]) if rows else None
        if record and record.fingerprint != fingerprint:
            raise self._damaged(f"looking for {fingerprint} leads to {record.case}")
        return record

    def find_source(self, source: str, stamp: str) -> Record | None:
        """The volume that holds what a source was in this very state, if any."""
        query = "WHERE id IN (SELECT id FROM sources WHERE source = ? AND stamp = ?)"
        with self._transaction() as database:
            rows = self._rows(database, query, source, stamp)
        return self._record(rows[0]) if rows else None

    def blob(self, record: Record, column: Blob) -> NDArray[np.int16]:
        """Read what belongs to a volume beside its record.

        Raises:
            DataError: the index cannot be read, it was damaged, or it has no such volume.
        """
        with self._transaction() as database:
            row = database.execute(f"SELECT {column} FROM volumes WHERE id = ?", (record.id,)).fetchone()
        if row is None:
            raise DataError(f"The index {self.path} has no volume {record.id}; open the store again.")
        content, checks = row[0], record.checks
        if not isinstance(content, bytes) or (checks and checksum_of(content) != getattr(checks, column)):
            raise self._damaged(f"the {column} of {record.case} fail their checksum")
        return np.frombuffer(content, dtype=np.int16)

    def faults_of(self, record: Record) -> Iterator[str]:
        """What is damaged of that which belongs to a volume beside its record."""
        columns: tuple[Blob, ...] = ("anchors", "label_anchors")
        for column in columns:
            try:
                self.blob(record, column)
            except DataError:
                yield f"{self.path} is damaged: the {column} of {record.case} fail their checksum"

    def add(self, record: Record, entry: Entry, stamp: str) -> list[str]:
        """Add a volume; one from the same source is replaced. Returns the ids of what went."""
        columns = (record.id, record.case, record.source, record.fingerprint, record.model_dump_json())
        row = (*columns, entry.anchors.tobytes(), entry.label_anchors.tobytes(), _check_of(columns))
        with self._replacing(record.source, keep=record.id) as (database, outdated):
            self._remove(database, record.id)
            database.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._count(database, 1, row[-1])
            self._remember(database, record.source, stamp, record.id)
        return outdated

    def add_duplicate(self, source: str, stamp: str, record: Record) -> list[str]:
        """Note that a source holds the voxels of a volume that is there. Returns the ids of what went."""
        with self._replacing(source, keep=record.id) as (database, outdated):
            self._remember(database, source, stamp, record.id)
        return outdated

    def quarantine(self, source: str, reason: str, evidence: Evidence | None) -> list[str]:
        """Note that a source cannot be used, and why. Returns the ids of what went."""
        with self._replacing(source) as (database, outdated):
            database.execute("DELETE FROM sources WHERE source = ?", (source,))
            database.execute("INSERT OR REPLACE INTO quarantine VALUES (?, ?)", (source, reason))
            database.execute("DELETE FROM evidence WHERE source = ?", (source,))
            if evidence is not None:
                row = (source, evidence.model_dump_json())
                database.execute("INSERT INTO evidence VALUES (?, ?)", row)
        return outdated

    def quarantined(self) -> list[tuple[str, str]]:
        """Sources that could not be used, each with the reason, ordered by source."""
        with self._transaction() as database:
            return database.execute("SELECT source, reason FROM quarantine ORDER BY source").fetchall()

    def evidence(self) -> dict[str, Evidence]:
        """What is known of quarantined sources; nothing of those that an earlier version refused."""
        rows = self._texts("SELECT source, evidence FROM evidence JOIN quarantine USING (source)")
        return {source: self._parsed(Evidence, source, text) for source, text in rows}

    def release(self, release: Release) -> None:
        """Note that somebody has put a quarantined source back."""
        with self._transaction(write=True) as database:
            row = (release.source, release.model_dump_json())
            database.execute("INSERT OR REPLACE INTO released VALUES (?, ?)", row)

    def released(self) -> list[Release]:
        """What was put back, ordered by source."""
        rows = self._texts("SELECT source, release FROM released ORDER BY source")
        return [self._parsed(Release, source, text) for source, text in rows]

    def seal(self, records: list[Record]) -> None:
        """Give the index of a store of format 1 the checksums that it lacks.

        Args:
            records: all that it holds, with the checksums that are known of each.
        """
        with self._transaction(write=True) as database:
            columns = [name for _, name, *_ in database.execute("PRAGMA table_info(volumes)")]
            if "row_check" not in columns:
                database.execute("ALTER TABLE volumes ADD COLUMN row_check INTEGER")
            checks = []
            for record in records:
                text = record.model_dump_json()
                checks.append(_check_of((record.id, record.case, record.source, record.fingerprint, text)))
                change = "UPDATE volumes SET record = ?, row_check = ? WHERE id = ?"
                database.execute(change, (text, checks[-1], record.id))
            database.execute(
                "UPDATE tally SET volumes = ?, checks = ?", (len(checks), reduce(xor, checks, 0))
            )

    def examine(self) -> tuple[list[str], list[Record]]:
        """Everything that is wrong with the index, a sentence each, and the records that are right."""
        try:
            with self._transaction() as database:
                found = [text for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
                rows = self._rows(database, "ORDER BY case_name, id")
                found += filter(None, [self._fault_of_tally(database, rows)])
        except DataError as error:
            return [str(error)], []
        faults, whole = [str(self._damaged(fault)) for fault in found], []
        for row in rows:
            try:
                record = self._record(row)
                whole.append(record)
                self.blob(record, "anchors")
                self.blob(record, "label_anchors")
            except DataError as error:
                faults.append(str(error))
        return faults, whole

    def _rows(self, database: sqlite3.Connection, condition: str, *values: str) -> list[tuple[Any, ...]]:
        check = "row_check" if self.checked else "NULL"
        query = f"SELECT id, case_name, source, fingerprint, record, {check} FROM volumes {condition}"
        return database.execute(query, values).fetchall()

    def _record(self, row: tuple[Any, ...]) -> Record:
        if fault := self._fault_of(row):
            raise self._damaged(fault)
        return self._parsed(Record, row[1], row[4])

    def _texts(self, query: str) -> list[tuple[str, str]]:
        """Rows of a table that stores of format 1 have not."""
        if not self.checked:
            return []
        with self._transaction() as database:
            return database.execute(query).fetchall()

    def _parsed(self, kind: type[SettingsT], name: str, text: str) -> SettingsT:
        try:
            return kind.model_validate_json(text)
        except ValueError as error:
            raise self._damaged(f"the row of {name!s:.100} cannot be read") from error

    def _all_rows(self, database: sqlite3.Connection) -> list[tuple[Any, ...]]:
        """Rows of all volumes, ordered by case name, then id; a DataError where one was damaged or lost."""
        rows = self._rows(database, "ORDER BY case_name, id")
        for fault in (*map(self._fault_of, rows), self._fault_of_tally(database, rows)):
            if fault:
                raise self._damaged(fault)
        return rows

    def _fault_of(self, row: tuple[Any, ...]) -> str:
        *columns, check = row
        whole = not self.checked or check == _check_of(columns)
        return "" if whole else f"the row of {row[1]!s:.100} fails its checksum"

    def _fault_of_tally(self, database: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> str:
        if not self.checked:
            return ""
        checks = [row[-1] for row in rows if isinstance(row[-1], int)]
        number, together = database.execute("SELECT volumes, checks FROM tally").fetchone() or (0, 0)
        if len(rows) != number:
            return f"it has {len(rows)} volumes instead of {number}"
        return "" if reduce(xor, checks, 0) == together else "the checksum of all rows differs"

    @contextmanager
    def _replacing(self, source: str, *, keep: str = "") -> Iterator[tuple[sqlite3.Connection, list[str]]]:
        """A transaction that also removes the volumes made from a source, but for the one to keep."""
        with self._transaction(write=True) as database:
            query = "SELECT id FROM volumes WHERE source = ? AND id != ?"
            outdated = [old for (old,) in database.execute(query, (source, keep))]
            for old in outdated:
                # What was a duplicate of the outdated volume is no longer known, so the next ingest adds it.
                database.execute("DELETE FROM sources WHERE id = ?", (old,))
                self._remove(database, old)
            yield database, outdated

    def _remove(self, database: sqlite3.Connection, identity: str) -> None:
        row = database.execute("SELECT row_check FROM volumes WHERE id = ?", (identity,)).fetchone()
        if row is not None:
            database.execute("DELETE FROM volumes WHERE id = ?", (identity,))
            self._count(database, -1, row[0])

    def _count(self, database: sqlite3.Connection, more: int, check: int) -> None:
        number, together = database.execute("SELECT volumes, checks FROM tally").fetchone()
        database.execute("UPDATE tally SET volumes = ?, checks = ?", (number + more, together ^ check))

    def _remember(self, database: sqlite3.Connection, source: str, stamp: str, identity: str) -> None:
        database.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (source, stamp, identity))
        database.execute("DELETE FROM quarantine WHERE source = ?", (source,))
        database.execute("DELETE FROM evidence WHERE source = ?", (source,))

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, committed at the end unless something was raised.

        Readers open the file for writing, too, where they may: what a process was writing when it was killed
        is undone by whoever opens it next, and that takes writing.
        """
        address = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        try:
            connection = sqlite3.connect(address, uri=True, timeout=30, isolation_level=None)
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise self._failed(error, write=write) from error
        except UnicodeDecodeError as error:  # what SQLite says of a table whose name was damaged
            raise self._damaged("its tables have other names") from error

    def _failed(self, error: sqlite3.Error, *, write: bool) -> DataError:
        code = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")
        if not write and not self.path.exists():
            return DataError(f"The index {self.path} is missing; {MAKE_AGAIN}.")
        if not code.startswith(_OUTSIDE):
            return self._damaged(str(error))
        if code.startswith("READONLY") and not write:
            return DataError(
                f"A process was killed while it wrote {self.path}, and what it began has to be undone before "
                "anybody can read: run 'misfm info' on the store once where it may be written."
            )
        return DataError(
            f"The index {self.path} cannot be {'written' if write else 'read'} ({error}); check free space "
            "and permissions."
        )

    def _damaged(self, fault: str) -> DataError:
        return DataError(f"The index {self.path} is damaged ({fault}); delete it, then {MAKE_AGAIN}.")


def _check_of(columns: Any) -> int:
    """Checksum of a row's text columns, whatever a damaged row holds in their place."""
    return zlib.crc32(ascii(tuple(columns)).encode())
