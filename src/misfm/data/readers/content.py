"""Voxels out of files, with no more memory taken than the file holds: a header is a claim of anybody."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import check_regular
from misfm.errors import DataError

_PIECE = 1 << 20
"""Bytes handled at a time, and what may lie behind the voxels."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_DENSEST = 1032
"""Bytes that one byte of deflate stands for at the most."""

Bytes = NDArray[np.uint8]


@contextmanager
def open_content(path: Path, *, start: int = 0, packed: bool = False) -> Iterator[Content]:
    """Open a file's content while the context lasts.

    Args:
        path: the file.
        start: where the content begins in it.
        packed: whether the content is packed by gzip or zlib.

    Raises:
        DataError: no file, but a pipe or a device.
    """
    check_regular(path)
    with path.open("rb") as file:
        held = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(max(0, start))
        most, pieces = (held * _DENSEST, _unpacked(file)) if packed else (held, _pieces(file))
        yield Content(path, most, pieces, packed=packed)


class Content:
    """What a file holds, read once from its start.

    Args:
        path: for messages.
        most: bytes that it can come to, at the most.
        pieces: of it.
        packed: whether they were packed.
    """

    def __init__(self, path: Path, most: int, pieces: Iterator[bytes], *, packed: bool = False) -> None:
        self._path = path
        self._most = most
        self._pieces = pieces
        self._packed = packed
        self._start = b""

    def start(self, size: int) -> bytes:
        """The first bytes, fewer where there are no more; :meth:`read` still begins with them."""
        while len(self._start) < size and (piece := next(self._pieces, b"")):
            self._start += piece
        return self._start[:size]

    def read(self, size: int, *, skip: int = 0) -> Bytes:
        """The bytes of the voxels.

        Packed content is unpacked up to its end, for only that tells whether it arrived unharmed; what lies
        behind the voxels of other content is left alone.

        Args:
            size: how many the header promises.
            skip: how many lie before them.

        Raises:
            DataError: there are fewer bytes, or many more.
        """
        if skip < 0 or size + skip > self._most:
            raise self._too_short(size, max(0, self._most - skip))
        # Memory is not taken by ``empty`` but by what is written, which is as much as there is.
        voxels: Bytes = np.empty(size, np.uint8)
        done = -skip
        for piece in chain([self._start], self._pieces):
            first, last = max(0, -done), max(0, min(len(piece), size - done))
            if first < last:
                voxels[done + first : done + last] = np.frombuffer(piece, np.uint8)[first:last]
            done += len(piece)
            if done >= size and not self._packed:
                break
            if done > size + _PIECE:
                raise DataError(
                    f"{self._path} goes on behind its last voxel; its header is wrong: export it again."
                )
        if done < size:
            raise self._too_short(size, max(0, done))
        return voxels

    def _too_short(self, size: int, held: int) -> DataError:
        return DataError(
            f"{self._path} cannot be read: its header promises {size} bytes of voxels where the file holds "
            f"at most {held}; copy or export it again."
        )


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_PIECE), b"")


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """Pieces of what is packed in a file from where it stands; there may be several parts, one after another.

    Raises:
        EOFError: the end is missing.
        zlib.error: damaged content.
    """
    rest, stream = b"", zlib.decompressobj(_GZIP_OR_ZLIB)
    is_first = True
    while block := rest or file.read(_PIECE >> 2):
        if piece := stream.decompress(block, _PIECE):
            yield piece
        is_first, rest = False, stream.unconsumed_tail
        if stream.eof:
            rest = stream.unused_data.lstrip(b"\0")  # some fill up with zeros
            if rest or (rest := file.read(_PIECE >> 2).lstrip(b"\0")):
                stream = zlib.decompressobj(_GZIP_OR_ZLIB)
    if is_first or not stream.eof:
        raise EOFError("it ends before its packed content does")
