"""Names and messages of others: nothing in them is obeyed, and no name leads out of its folder."""

import json
import logging
import os
import sqlite3
from pathlib import Path

import pytest

from misfm.errors import DataError
from misfm.files import write_text
from misfm.terminal import logger
from misfm.text import file_name, one_line, path_text, printable

NOT_TEXT = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("gz.nii\u202e", r"gz.nii\u202e"),
        (NOT_TEXT, r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("Müller 患者 🙂\tone\ntwo", "Müller 患者 🙂\tone\ntwo"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_a_sentence_stays_one_line_whatever_the_name_in_it():
    assert one_line("a\nError: b\t") == r"a\nError: b\t"
    assert str(DataError("\x1b[2Ja\nb cannot be read.")) == r"\x1b[2Ja\nb cannot be read."


def test_a_record_of_the_log_is_printable_for_whoever_keeps_it(caplog):
    with caplog.at_level(logging.INFO):
        logger.info("case %s", f"\x1b[2J{NOT_TEXT}")
    assert caplog.messages == [r"case \x1b[2Jcaf\xe9"]


def test_a_text_file_can_hold_any_name(tmp_path):
    write_text(tmp_path / "report.md", f"| {NOT_TEXT}\x1b[2J |\n")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "| caf\\xe9\\x1b[2J |\n"


def test_the_text_of_a_path_is_the_path_or_leads_back_to_it():
    assert path_text(Path("/a/b%20\n.nii")) == "/a/b%20\n.nii"
    text = path_text(Path("/a b") / NOT_TEXT)
    assert text == "file:///a%20b/caf%E9"
    assert path_text(Path("/\ud800")).startswith("file:///%")
    json.dumps(text).encode()
    with sqlite3.connect(":memory:") as database:
        assert database.execute("SELECT ?", (text,)).fetchone() == (text,)


@pytest.mark.parametrize("name", ["case", "Fall 7, Müller", "a%20b", "1.2.840.77", "a:b"])
def test_the_name_of_a_file_is_a_name_of_a_file(name):
    assert file_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["x/../../ESC", "/etc/passwd", "..", ".", "", ".hidden", "a\\b", "a\0b", NOT_TEXT, "\x1b[2J", "ä" * 500],
)
def test_no_name_leads_out_of_its_folder(tmp_path, name):
    path = tmp_path / f"{file_name(name)}.nii.gz"
    path.write_bytes(b"")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert not path.name.startswith(".")
    assert path.name.isprintable()


def test_long_names_that_differ_at_their_ends_are_two_files():
    assert file_name("a" * 300 + "1") != file_name("a" * 300 + "2")
