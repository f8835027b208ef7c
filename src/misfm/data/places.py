"""Where patches of a volume may be centred: a small file beside its voxels, read alone and in a tenth of a
millisecond.

Places are numbers of voxels in the order of the volume. Of sorted numbers the differences are small, and of
their bytes most are 0: 4096 places take 7 kB instead of 24.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.volume import Shape

_HEADER = struct.Struct("<III")
"""Checksum of what follows, bytes of the places of the image, bytes of those of the labels."""
_MOST_BYTES = 2**24
"""Of places in memory; 4096 of an image and 1024 for each of 255 labels take a quarter of it."""


def pack_places(anchors: NDArray[np.int16], label_anchors: NDArray[np.int16], shape: Shape) -> bytes:
    """Pack the places of a volume into the content of a file.

    Args:
        anchors: (N, 3) coordinates.
        label_anchors: (M, 4), a label value and coordinates in each row.
        shape: of the volume.
    """
    parts = [
        _pack(_numbers(anchors, shape)),
        _pack(np.concatenate([label_anchors[:, 0], _numbers(label_anchors[:, 1:], shape)])),
    ]
    rest = struct.pack("<II", *map(len, parts)) + b"".join(parts)
    return struct.pack("<I", zlib.crc32(rest)) + rest


def unpack_anchors(content: bytes, shape: Shape) -> NDArray[np.int16]:
    """Return the (N, 3) coordinates that :func:`pack_places` was given.

    Raises:
        ValueError: the content was damaged, or is of a volume of another shape.
    """
    return _coordinates(_unpack(content, 0), shape)


def unpack_label_anchors(content: bytes, shape: Shape) -> NDArray[np.int16]:
    """Return the (M, 4) labels and coordinates; see :func:`unpack_anchors`."""
    labels, numbers = np.split(_unpack(content, 1), 2)
    return np.column_stack([labels.astype(np.int16), _coordinates(numbers, shape)])


def _numbers(places: NDArray[np.int16], shape: Shape) -> NDArray[np.int64]:
    d, h, w = places.T.astype(np.int64)
    numbers: NDArray[np.int64] = (d * shape[1] + h) * shape[2] + w
    return numbers


def _coordinates(numbers: NDArray[np.int64], shape: Shape) -> NDArray[np.int16]:
    _, height, width = shape
    rows, w = np.divmod(numbers, width)
    d, h = np.divmod(rows, height)
    if len(d) and int(d.max()) >= shape[0]:
        raise ValueError("it is of a larger volume")
    coordinates = np.empty((len(numbers), 3), dtype=np.int16)
    coordinates[:, 0], coordinates[:, 1], coordinates[:, 2] = d, h, w
    return coordinates


def _pack(numbers: NDArray[Any]) -> bytes:
    """Compress whole numbers: their differences, modulo 2**32, first all lowest bytes, then all others."""
    differences = np.diff(numbers.astype(np.uint32), prepend=np.uint32(0)).astype("<u4")
    return zlib.compress(differences.view(np.uint8).reshape(-1, 4).T.tobytes(), 6)


def _unpack(content: bytes, part: int) -> NDArray[np.int64]:
    try:
        crc, *sizes = _HEADER.unpack_from(content)
        if len(content) != _HEADER.size + sum(sizes) or zlib.crc32(memoryview(content)[4:]) != crc:
            raise ValueError("its checksum differs")
        start = _HEADER.size + sum(sizes[:part])
        stream = zlib.decompressobj()
        planes = stream.decompress(content[start : start + sizes[part]], _MOST_BYTES)
        rows = np.frombuffer(planes, np.uint8).reshape(4, -1).T
    except (struct.error, zlib.error) as error:
        raise ValueError(str(error)) from error
    differences = np.ascontiguousarray(rows).view("<u4")[:, 0]
    return np.cumsum(differences, dtype=np.uint32).astype(np.int64)
