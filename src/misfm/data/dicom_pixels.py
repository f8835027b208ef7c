"""The pixels of one DICOM slice, with no more memory taken than a slice of its size needs."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.encaps import get_frame

from misfm.data.checks import check_regular, compact, readable
from misfm.errors import DataError

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_DEFLATED = 1 << 28
"""Bytes that a deflated file may come to: that of a slice of 8192 x 8192 pixels, twice."""
_DENSEST = 5000
"""Pixels that a byte of compressed ones stands for at the most; slices of one value are packed densest."""
_ALWAYS = 1 << 20
"""Pixels that any slice may have."""
_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Of the sizes in JPEG and JPEG-LS."""


def read_header(file: Path, tags: list[str] | None = None) -> Any:
    """Read a file, or these of its tags alone.

    Raises:
        DataError: it is damaged, or would become far larger than a slice is.
    """
    with readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_regular(file)
        _check_deflated(file)
        return pydicom.dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags)


def read_pixels(file: Path) -> NDArray[Any]:
    """Pixels (H, W) of one slice after rescaling; whole numbers stay integers.

    Raises:
        DataError: they are damaged, or fewer than the header promises.
    """
    header = read_header(file)
    with readable(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_size(header, file)
        pixels: NDArray[Any] = header.pixel_array
        slope = float(header.get("RescaleSlope", 1) or 1)
        intercept = float(header.get("RescaleIntercept", 0) or 0)
        if slope.is_integer() and intercept.is_integer():
            return compact(pixels.astype("i4") * int(slope) + int(intercept))
        return (pixels * slope + intercept).astype("f4")


def _check_deflated(file: Path) -> None:
    """Refuse a file that is packed as a whole, which is rare, if it comes to more than any slice."""
    with file.open("rb") as content:
        start = content.read(1 << 11)
        if _DEFLATED not in start:
            return
        length = int.from_bytes(start[140:144], "little") if start[132:136] == b"\2\0\0\0" else 0
        content.seek(144 + length)
        stream, done = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := stream.unconsumed_tail or content.read(1 << 18):
            done += len(stream.decompress(block, 1 << 20))
            if done > _MOST_DEFLATED:
                raise DataError(f"{file} unpacks to more than any slice needs; save it uncompressed.")
            if stream.eof:
                return


def _check_size(header: Any, file: Path) -> None:
    """Compare the size of a slice with the bytes that its pixels take, and with what those bytes say."""
    rows, columns = int(header.Rows), int(header.Columns)
    content = header.get("PixelData", b"")
    size = rows, columns
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = get_frame(content, 0, number_of_frames=1)
        size = _coded_size(frame) or size
        is_right = size == (rows, columns) and rows * columns <= _ALWAYS + _DENSEST * len(frame)
    else:
        is_right = rows * columns * int(header.BitsAllocated) <= 8 * len(content)
    if not is_right:
        raise DataError(
            f"{file} cannot be read: its header promises {rows} x {columns} pixels where {len(content)} "
            f"bytes hold those of {size[0]} x {size[1]}; copy or export it again."
        )


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that JPEG 2000, JPEG and JPEG-LS tell at their start; decoders take memory for them.

    Returns:
        None where the start is of another coding.
    """

    def number(start: int, length: int) -> int:
        return int.from_bytes(frame[start : start + length], "big")

    if frame[:4] == b"\xff\x4f\xff\x51":  # the grid of JPEG 2000, and where the image begins in it
        return number(12, 4) - number(20, 4), number(8, 4) - number(16, 4)
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 < len(frame) and frame[place] == 0xFF:
        if frame[place + 1] in _MARKERS:
            return number(place + 5, 2), number(place + 7, 2)
        place += 2 + number(place + 2, 2) if frame[place + 1] != 0xFF else 1
    return None
