"""Files of DICOM: which they are, whatever their names, and their headers."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from misfm.data.checks import check_regular, readable
from misfm.data.quiet import quiet_logger
from misfm.errors import DataError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_QUIET = quiet_logger("pydicom")
_MARK = b"DICM"
_START = 1 << 10
"""Bytes at the start of a file that say whether it is DICOM."""
_FIRST_GROUPS = (0x0002, 0x0008)
"""Groups that a data set starts with."""
_LAST_GROUP = 0x0028
"""Group up to which its first elements reach."""
_ENOUGH = 4
"""Elements one behind another that make DICOM of a file without mark; where they are long, two."""
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Kinds of values whose length takes 4 bytes behind 2 empty ones."""
_MOST_DEFLATED = 1 << 28
"""Bytes that a deflated file may come to: that of a slice of 8192 x 8192 pixels, twice."""


def quietly(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Keep pydicom, and what it warns of values in headers, from being heard: they may name a patient."""

    @functools.wraps(read)
    def quiet(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(*args, **kwargs)

    return quiet


def is_dicom(path: Path) -> bool:
    """Whether a file bears the DICOM mark, or starts as a data set does that was written without it.

    Names and extensions mean nothing in DICOM.
    """
    try:
        if not path.is_file():  # a pipe would have to be waited for
            return False
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return False
    return start[128:132] == _MARK or _is_data_set(start)


def read_header(file: Path, tags: list[str] | None = None) -> Any:
    """Read a file, or these of its tags alone; ``file_meta.TransferSyntaxUID`` is always there.

    Raises:
        DataError: it is damaged, or would become far larger than a slice is.
    """
    with readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_regular(file)
        with file.open("rb") as content:
            start = content.read(_START << 1)
        _check_deflated(file, start)
        bare = start[128:132] != _MARK and _is_data_set(start)
        header = pydicom.dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags, force=bare)
        if not header.file_meta.get("TransferSyntaxUID"):
            implicit, little = header.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        return header


def _is_data_set(start: bytes) -> bool:
    """Whether bytes are elements in the order of their tags, as a data set starts with."""
    place, before, found = 0, -1, 0
    while found < _ENOUGH and place + 8 <= len(start):
        group, element = struct.unpack_from("<HH", start, place)
        tag, kind = (group << 16) + element, start[place + 4 : place + 6]
        if tag <= before or group > _LAST_GROUP or (found == 0 and group not in _FIRST_GROUPS):
            return False
        if kind.isalpha() and kind.isupper():
            length, size = (struct.unpack_from("<H", start, place + 6)[0], 8)
            if kind in _LONG:
                if place + 12 > len(start):
                    break
                length, size = struct.unpack_from("<I", start, place + 8)[0], 12
        else:
            length, size = struct.unpack_from("<I", start, place + 4)[0], 8
        if length % 2 and length != 0xFFFFFFFF:
            return False
        place, before, found = place + size + length, tag, found + 1
    return found >= 2


def _check_deflated(file: Path, start: bytes) -> None:
    """Refuse a file that is packed as a whole, which is rare, if it comes to more than any slice."""
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    length = int.from_bytes(start[140:144], "little") if start[132:136] == b"\2\0\0\0" else 0
    with file.open("rb") as content:
        content.seek(144 + length)
        stream, done = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := stream.unconsumed_tail or content.read(1 << 18):
            done += len(stream.decompress(block, 1 << 20))
            if done > _MOST_DEFLATED:
                raise DataError(f"{file} unpacks to more than any slice needs; save it uncompressed.")
            if stream.eof:
                return
