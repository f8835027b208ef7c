"""Names and messages that came from files of others, as text that is safe to show, to keep and to write.

A file name may hold bytes that are no text, a case name slashes, a header what a terminal obeys.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import quote

_OBEYED = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # what terminals obey; tabs and ends of lines are left
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # ends of lines and turns of direction, which hide what follows
    "\ud800-\udfff"  # halves of characters, which nothing can encode: how Python keeps bytes that are no text
    "]"
)
_UNFIT_IN_NAMES = re.compile(r"[/\\\t\n]|" + _OBEYED.pattern)
"""What is no part of a file name, or is obeyed where names are shown."""
_LONGEST_NAME = 200
"""Bytes; file systems take 255, of which an ending and a temporary name need some."""


def printable(text: str) -> str:
    r"""Return a text with escapes such as ``\x1b`` for what a terminal obeys and what UTF-8 cannot hold."""
    return _OBEYED.sub(_escape, text)


def one_line(text: str) -> str:
    """Return a text as :func:`printable` does, without ends of lines."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def path_text(path: Path) -> str:
    """Return a path as databases and JSON can hold it: itself, or its ``file:`` address if it is no text.

    No two paths have the same text.
    """
    text = str(path)
    if _is_text(text):
        return text
    whole = str(path.absolute())
    try:
        encoded = os.fsencode(whole)
    except UnicodeEncodeError:  # no path either, as a list may hold
        encoded = whole.encode(errors="surrogatepass")
    return f"file://{quote(encoded)}"


def file_name(name: str) -> str:
    """Return the name of a file that stands for a name: itself, with ``%2F`` for a slash and the like.

    Whatever the name, the file lies in the folder it is written to and is not hidden; of a very long name a
    hash stands for the end. Two names that differ in such characters alone may have one file name.
    """
    safe = _UNFIT_IN_NAMES.sub(lambda match: quote(match[0], safe="", errors="surrogatepass"), name)
    safe = re.sub(r"^\.", "%2E", safe) or "%00"
    encoded = safe.encode()
    if len(encoded) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[: _LONGEST_NAME - 17].decode(errors='ignore')}-{digest}"


def _is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
