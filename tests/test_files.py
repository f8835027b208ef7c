"""Files appear whole or not at all, and what cannot be written is one sentence."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from misfm.errors import DataError
from misfm.files import (
    CHECKSUMS,
    atomic_write,
    forget_checksum,
    read_checked,
    read_checked_json,
    write_bytes,
    write_checked,
    write_checked_json,
    write_json,
    write_text,
)


def test_content_replaces_what_was_there_and_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "notes.txt"
    write_text(path, "first")
    write_text(path, "zweitens: äöü")
    assert path.read_text(encoding="utf-8") == "zweitens: äöü"
    write_bytes(path, b"\0third")
    assert path.read_bytes() == b"\0third"
    assert os.listdir(path.parent) == ["notes.txt"]


def test_json_reads_back_and_holds_no_nan(tmp_path):
    content = {"dice": 0.5, "missing": None, "names": ["a", "b"]}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == content


@pytest.mark.parametrize("failure", [RuntimeError("halfway"), KeyboardInterrupt()])
def test_a_failure_halfway_leaves_the_old_content_and_no_trace(tmp_path, failure):
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def write_half():
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(DataError, match=r"Cannot write .*notes\.txt: No space left on device\. Free space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="choose another folder"):
        write_text(tmp_path / "file" / "notes.txt", "new")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / ".notes.txt.0badcafe.tmp").write_text("half")
    with atomic_write(tmp_path / "notes.txt") as slow:
        slow.write_text("slow")
        write_text(tmp_path / "notes.txt", "fast")
        assert sorted(os.listdir(tmp_path)) == sorted([slow.name, "notes.txt"])
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "slow"


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "notes.txt"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: write_text(path, str(number) * 10_000), [*range(10)] * 30))
    assert len(set(path.read_text())) == 1
    assert len(path.read_text()) == 10_000
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_file_with_a_checksum_is_read_as_it_was_written_or_not_at_all(tmp_path):
    path = tmp_path / "split.json"
    write_checked_json(path, {"train": ["a"], "val": ["b"]})
    assert read_checked_json(path) == {"train": ["a"], "val": ["b"]}
    for place in range(path.stat().st_size):
        damaged = bytearray(path.read_bytes())
        damaged[place] ^= 1
        (tmp_path / "copy").write_bytes(path.read_bytes())
        path.write_bytes(bytes(damaged))
        with pytest.raises(
            DataError, match=r"split\.json is not as misfm wrote it.* delete .*checksums\.json"
        ):
            read_checked(path)
        (tmp_path / "copy").replace(path)
    forget_checksum(path)
    path.write_text("[")
    with pytest.raises(DataError, match="is damaged"):
        read_checked_json(path)


@pytest.mark.parametrize("kept", [CHECKSUMS, "notes.txt"])
def test_a_kill_between_a_file_and_its_checksum_leaves_both_readable(tmp_path, monkeypatch, kept):
    path, replace = tmp_path / "notes.txt", os.replace
    write_checked(path, b"old")

    def killed(source, target):
        if target.name == kept:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checked(path, b"new")
    assert read_checked(path) == b"old"
    write_checked(path, b"new")
    assert read_checked(path) == b"new"


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '{"a": ["b"]}', "[" * 100_000, "\xff"])
def test_damaged_checksums_are_a_sentence(tmp_path, content):
    (tmp_path / CHECKSUMS).write_bytes(content.encode("latin-1"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"checksums\.json is damaged; delete it"):
        read_checked(tmp_path / "notes.txt")


def test_two_writes_that_fail_in_a_row_leave_a_file_that_is_known(tmp_path, monkeypatch):
    path = tmp_path / "split.json"
    write_checked(path, b"first")

    def full(target, content):
        raise DataError(f"Cannot write {target}: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr("misfm.files.write_bytes", full)
        patch.setattr("misfm.files.write_text", lambda target, text: target.write_text(text))
        for content in (b"second", b"third"):
            with pytest.raises(DataError, match="Cannot write"):
                write_checked(path, content)
    assert read_checked(path) == b"first"
