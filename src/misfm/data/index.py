"""The index of a store: the records of its volumes, what they were made from, and what could not be used.

Every row of a volume has a checksum, and all together a number and the XOR of those, kept in the same
transaction: neither a row that changed nor one that vanished is passed over, which SQLite would do.

Every change leaves a new random number in the index (``user_version``). By it a file of columns beside the
index is known to be of this very state; thousands of volumes are then listed from it, in milliseconds.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import MAKE_AGAIN, checksum_of
from misfm.data.columns import Columns, Rows, State, read_columns, row_check
from misfm.data.quarantine import Evidence, Release
from misfm.data.record import Record
from misfm.data.records import Records
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

COLUMNS = ".index.columns"
"""Beside the index, where there are many volumes."""
MANY = 1000
"""Volumes from which on columns are kept: fewer are listed in a few milliseconds anyway."""

Blob = Literal["anchors", "label_anchors"]


class Index:
    """``index.sqlite`` of a store. Each call opens it anew (0.2 ms), so any thread and fork may call.

    Args:
        path: the file.
        checked: whether its rows have checksums, as those of stores of format 1 have not.
        numbered: whether each change leaves a new number, as in stores since format 3.
    """

    def __init__(self, path: Path, *, checked: bool = True, numbered: bool = True) -> None:
        self.path = path
        self.checked = checked
        self._numbered = numbered
        self._last: tuple[State, Columns] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def create(self) -> None:
        """Make the tables that are missing.

        Raises:
            DataError: the index cannot be written, or a row was damaged or lost.
        """
        with self._transaction(write=True) as database:
            for statement in _SCHEMA:
                database.execute(statement)
            deque(self._all_rows(database), maxlen=0)

    def records(self) -> Records:
        """All volumes, ordered by case name, then id.

        Raises:
            DataError: the index cannot be read, or a row was damaged or lost.
        """
        path = self.path.with_name(COLUMNS)
        with self._transaction() as database:
            state = self._state(database)
            columns = self._known(path, state)
            is_new = columns is None
            if columns is None:
                columns = self._columns(database, path)
        if state is not None:
            self._last = state, columns
            if is_new and len(columns) >= MANY:
                with suppress(DataError):  # a store that may not be written is listed slowly, no more
                    columns.write(path, state)
        return Records(columns)

    def find(self, fingerprint: str) -> Record | None:
        """The volume made from voxels with this fingerprint, if any."""
        with self._transaction() as database:
            row = self._rows(database, "WHERE fingerprint = ? ORDER BY id LIMIT 1", fingerprint).fetchone()
        record = self._record(row) if row else None
        if record and record.fingerprint != fingerprint:
            raise self._damaged(f"looking for {fingerprint} leads to {record.case}")
        return record

    def find_source(self, source: str, stamp: str) -> Record | None:
        """The volume that holds what a source was in this very state, if any."""
        query = "WHERE id IN (SELECT id FROM sources WHERE source = ? AND stamp = ?)"
        with self._transaction() as database:
            row = self._rows(database, query, source, stamp).fetchone()
        return self._record(row) if row else None

    def blob(self, record: Record, column: Blob) -> NDArray[np.int16] | None:
        """Read where patches of a volume may be centred, which the index holds of what formats 1 and 2 added.

        None where it does not.

        Raises:
            DataError: the index cannot be read, it was damaged, or it has no such volume.
        """
        with self._transaction() as database:
            row = database.execute(f"SELECT {column} FROM volumes WHERE id = ?", (record.id,)).fetchone()
        if row is None:
            raise DataError(f"The index {self.path} has no volume {record.id}; open the store again.")
        content, checks = row[0], record.checks
        if content is None:
            return None
        if not isinstance(content, bytes) or (checks and checksum_of(content) != getattr(checks, column)):
            raise self._damaged(f"the {column} of {record.case} fail their checksum")
        return np.frombuffer(content, dtype=np.int16)

    def add(self, record: Record, stamp: str) -> list[str]:
        """Add a volume; one from the same source is replaced. Returns the ids of what went."""
        columns = (record.id, record.case, record.source, record.fingerprint, record.model_dump_json())
        row = (*columns, None, None, row_check(columns))
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
                checks.append(row_check((record.id, record.case, record.source, record.fingerprint, text)))
                change = "UPDATE volumes SET record = ?, row_check = ? WHERE id = ?"
                database.execute(change, (text, checks[-1], record.id))
            database.execute(
                "UPDATE tally SET volumes = ?, checks = ?", (len(checks), reduce(xor, checks, 0))
            )
            _renumber(database)

    def examine(self) -> tuple[list[str], list[Record]]:
        """Everything that is wrong with the index, a sentence each, and the records that are right."""
        try:
            with self._transaction() as database:
                found = [text for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
                rows = self._rows(database, "ORDER BY case_name, id").fetchall()
                checks = [row[-1] for row in rows if isinstance(row[-1], int)]
                found += filter(None, [self._fault_of_tally(database, len(rows), reduce(xor, checks, 0))])
        except DataError as error:
            return [str(error)], []
        faults, whole = [str(self._damaged(fault)) for fault in found], []
        for row in rows:
            try:
                whole.append(self._record(row))
            except DataError as error:
                faults.append(str(error))
        return faults, whole

    def _rows(self, database: sqlite3.Connection, condition: str, *values: str) -> sqlite3.Cursor:
        check = "row_check" if self.checked else "NULL"
        query = f"SELECT id, case_name, source, fingerprint, record, {check} FROM volumes {condition}"
        return database.execute(query, values)

    def _state(self, database: sqlite3.Connection) -> State | None:
        """What changes with every change; None where nothing does, or the number of volumes was lost."""
        if not (self.checked and self._numbered):
            return None
        tally = database.execute("SELECT volumes, checks FROM tally").fetchone()
        return (database.execute("PRAGMA user_version").fetchone()[0], *tally) if tally else None

    def _known(self, path: Path, state: State | None) -> Columns | None:
        """Columns of this state, where this process has them, or a file."""
        if state is None:
            return None
        if self._last is not None and self._last[0] == state:
            return self._last[1]
        return read_columns(path, state)

    def _columns(self, database: sqlite3.Connection, path: Path) -> Columns:
        """Columns of all volumes, in their order; a DataError where one was damaged or lost."""
        rows = Rows(checked=self.checked, where=str(path))
        for row in self._all_rows(database):
            rows.add(self._parsed(Record, row[1], row[4]), row[4], row[5])
        return rows.columns()

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

    def _all_rows(self, database: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
        """Rows of all volumes, ordered by case name, then id; a DataError where one was damaged or lost."""
        number = together = 0
        for row in self._rows(database, "ORDER BY case_name, id"):
            if fault := self._fault_of(row):
                raise self._damaged(fault)
            number, together = number + 1, together ^ (row[-1] or 0)
            yield row
        if fault := self._fault_of_tally(database, number, together):
            raise self._damaged(fault)

    def _fault_of(self, row: tuple[Any, ...]) -> str:
        *columns, check = row
        whole = not self.checked or check == row_check(columns)
        return "" if whole else f"the row of {row[1]!s:.100} fails its checksum"

    def _fault_of_tally(self, database: sqlite3.Connection, found: int, checks: int) -> str:
        if not self.checked:
            return ""
        number, together = database.execute("SELECT volumes, checks FROM tally").fetchone() or (0, 0)
        if found != number:
            return f"it has {found} volumes instead of {number}"
        return "" if checks == together else "the checksum of all rows differs"

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
        _renumber(database)

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


def _renumber(database: sqlite3.Connection) -> None:
    """Give the index a number that no earlier state of it has had."""
    database.execute(f"PRAGMA user_version = {secrets.randbits(31)}")
