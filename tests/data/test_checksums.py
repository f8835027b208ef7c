"""Checksums: a file is read whole once in a process, and again when somebody has written it anew."""

import os

import pytest

from misfm.data import checksums
from misfm.data.checksums import Checksum, checksum_of, checksum_of_file, fault_of_file


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10_000)
    return path


def flip(path, place=1000):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_file_has_the_checksum_of_its_content(file):
    assert checksum_of_file(file) == checksum_of(file.read_bytes()) == Checksum(677316169, 2_560_000)


def test_what_is_wrong_with_a_file(file, tmp_path):
    expected = checksum_of_file(file)
    assert fault_of_file(file, expected) == ""
    flip(file)
    assert fault_of_file(file, expected) == "is damaged: its checksum differs"
    file.write_bytes(b"short")
    assert fault_of_file(file, expected) == "is damaged: it has 5 bytes instead of 2560000"
    file.unlink()
    assert fault_of_file(file, expected) == "is missing"
    assert fault_of_file(tmp_path, Checksum(0, tmp_path.stat().st_size)) == "cannot be read (Is a directory)"


def test_a_file_is_read_once_unless_it_was_written_anew(file, monkeypatch):
    expected, read = checksum_of_file(file), []
    monkeypatch.setattr(
        checksums, "checksum_of_file", lambda path: read.append(path) or checksum_of_file(path)
    )
    for _ in range(3):
        assert fault_of_file(file, expected) == ""
    assert read == [file]
    state = file.stat()
    flip(file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a disk that forgets a bit
    assert fault_of_file(file, expected) == ""
    assert fault_of_file(file, expected, again=True) == "is damaged: its checksum differs"
    os.utime(file)
    assert fault_of_file(file, expected) == "is damaged: its checksum differs"
