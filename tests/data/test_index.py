"""The index of a store: a kill inside a commit is undone by the next, and damage is never passed over."""

import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from misfm.data.index import Index
from misfm.data.intensity import Normalisation
from misfm.data.record import IngestSettings, Origin, make_entry
from misfm.errors import DataError
from misfm.volume import Volume

RULE = Normalisation(lower=-1000, upper=1000, shift=0, scale=1000)


def entry(seed=0):
    generator = np.random.default_rng(seed)
    image = Volume(generator.integers(-1000, 1000, (1, 4, 5, 6)).astype(np.int16), np.eye(4))
    label = Volume(generator.integers(0, 3, (1, 4, 5, 6)).astype(np.uint8), np.eye(4))
    origin = Origin(f"case{seed}", f"/scans/{seed}.nii.gz", f"voxels {seed}")
    return make_entry(origin, image, label, ["ct"], (RULE,), IngestSettings())


def add(index, one, stamp="monday"):
    """Add a volume as format 2 had it, its places in the index."""
    record = one.record.model_copy(update={"checks": one.checks()})
    index.add(record, stamp)
    with index._transaction(write=True) as database:
        places = (one.anchors.tobytes(), one.label_anchors.tobytes(), record.id)
        database.execute("UPDATE volumes SET anchors = ?, label_anchors = ? WHERE id = ?", places)
    return record


@pytest.fixture
def index(tmp_path):
    index = Index(tmp_path / "index.sqlite")
    index.create()
    for seed in range(3):
        add(index, entry(seed))
    return index


KILLED = """
import os, signal, sys
from pathlib import Path
from misfm.data.index import Index

with Index(Path(sys.argv[1]))._transaction(write=True) as database:
    database.execute("PRAGMA cache_size = 1")  # what changes is written at once, the old kept in the journal
    database.execute("UPDATE volumes SET case_name = 'half', anchors = zeroblob(100000)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(index):
    before = index.path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(index.path)], check=False)
    assert done.returncode == -9
    assert index.path.read_bytes() != before
    assert index.path.with_name("index.sqlite-journal").stat().st_size > 0


def test_a_reader_undoes_what_a_killed_process_was_writing(index):
    before = index.records()
    kill_while_writing(index)
    assert index.records() == before
    assert len(index.blob(before[0], "anchors")) == len(entry(0).anchors) * 3
    assert not index.path.with_name("index.sqlite-journal").exists()


def test_a_writer_undoes_it_too(index):
    before = index.records()
    kill_while_writing(index)
    index.create()
    assert index.records() == before
    add(index, entry(3))
    assert len(index.records()) == 4


def read_unprivileged(index):
    """What a user who is not root reads, for root may write anything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            told = str(len(index.records()))
        except DataError as error:
            told = str(error)
        finally:
            os.write(writer, told.encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read()


@pytest.fixture
def set_modes(index):
    def set_modes(file, folder):
        index.path.chmod(file)
        index.path.parent.chmod(folder)

    for folder in list(index.path.parents)[:-2]:
        folder.chmod(0o755)
    yield set_modes
    set_modes(0o644, 0o755)


def test_what_may_not_be_written_is_read_unless_something_has_to_be_undone(index, set_modes):
    set_modes(0o444, 0o555)
    assert read_unprivileged(index) == "3"
    set_modes(0o644, 0o755)
    kill_while_writing(index)
    set_modes(0o444, 0o555)
    assert "killed while it wrote" in read_unprivileged(index)
    assert "where it may be written" in read_unprivileged(index)
    set_modes(0o644, 0o755)
    assert len(index.records()) == 3


def change(index, statement):
    database = sqlite3.connect(index.path)
    with database:
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE volumes SET record = replace(record, '\"ct\"', '\"mr\"')", "row of case0"),
        ("UPDATE volumes SET case_name = 'case7' WHERE case_name = 'case1'", "row of case7"),
        (
            "UPDATE volumes SET case_name = CAST(x'63ff' AS TEXT) WHERE case_name = 'case0'",
            "Could not decode",
        ),
        ("UPDATE volumes SET record = 7 WHERE case_name = 'case1'", "row of case1"),
        ("DELETE FROM volumes WHERE case_name = 'case1'", "2 volumes instead of 3"),
        ("UPDATE tally SET checks = checks + 1", "checksum of all rows"),
        ("DELETE FROM tally", "3 volumes instead of 0"),
        ("ALTER TABLE volumes RENAME TO volumfs", "no such table"),
    ],
)
def test_a_row_that_changed_or_vanished_is_noticed_by_readers_and_writers(index, statement, sentence):
    change(index, statement)
    with pytest.raises(
        DataError, match=rf"index\.sqlite is damaged \(.*{sentence}.*delete it, then run again"
    ):
        index.records()
    assert index.examine()[0]
    with pytest.raises(DataError, match="is damaged"):
        index.create()


@pytest.mark.parametrize("column", ["anchors", "label_anchors"])
@pytest.mark.parametrize("content", ["zeroblob(24)", "x''", "'text'"])
def test_places_for_patches_have_checksums(index, column, content):
    (record, *_) = index.records()
    change(index, f"UPDATE volumes SET {column} = {content} WHERE id = '{record.id}'")
    with pytest.raises(DataError, match=f"the {column} of case0 fail their checksum"):
        index.blob(record, column)


def test_all_faults_are_told_at_once(index):
    change(index, "UPDATE volumes SET source = 'x' WHERE case_name != 'case1'")
    faults, whole = index.examine()
    assert [record.case for record in whole] == ["case1"]
    assert len(faults) == 2


def test_no_flipped_bit_changes_what_is_read(index, tmp_path):
    def all_of(one):
        records = one.records()
        columns = ("anchors", "label_anchors")
        blobs = [one.blob(record, column).tobytes() for record in records for column in columns]
        found = [one.find(record.fingerprint) for record in records]
        return records, blobs, found

    right = all_of(index)
    content = index.path.read_bytes()
    flipped = Index(tmp_path / "flipped.sqlite")
    generator, noticed = np.random.default_rng(0), []
    for place in generator.integers(0, 8 * len(content), 400):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        flipped.path.write_bytes(damaged)
        try:
            records, blobs, found = all_of(flipped)
        except DataError as error:
            noticed.append(str(error))
        else:
            assert (records, blobs) == right[:2]
            assert all(one in (None, record) for one, record in zip(found, records, strict=True))
    assert len(noticed) > 40
    assert "\n" not in "".join(noticed)


def test_a_lost_index_is_named(index):
    index.path.unlink()
    with pytest.raises(DataError, match=r"index\.sqlite is missing; run again what made the store"):
        index.records()
    shutil.copy(sys.executable, index.path)
    with pytest.raises(DataError, match="not a database"):
        index.records()
