"""Class probabilities beside a label map, ``CASE.npz``, as nnU-Net writes them with ``--save_probabilities``.

The archive holds the array ``probabilities``: (K, D, H, W) in the order of the scan's own axes, the slowest
first, which is how SimpleITK gives an array; classes with the background first, or
regions. They are those that the label map was decided by, before its clean-up. float16, for a probability is
not known to a thousandth.

nnU-Net writes ``CASE.pkl`` beside it, for its own ensembling. A pickle runs what it holds when it is opened,
so there is none here: networks that label together are given to ``misfm predict`` at once.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from misfm.files import atomic_write, scratch_file
from misfm.inference.predictor import Probabilities
from misfm.volume import Volume

SUFFIX = ".npz"
KEY = "probabilities"
_COMPRESSION = 1
"""Most voxels are sure, hence equal: more effort takes longer and saves little."""
_PIECE = 2**22
"""Values compressed at a time."""


class ProbabilityFile:
    """Takes the probabilities of a scan as they are made; they wait on disk, in the folder of the file.

    Args:
        waiting: file for them to wait in.
        volume: the scan, on its own grid.
    """

    def __init__(self, waiting: Path, volume: Volume) -> None:
        self._waiting = waiting
        self._volume = volume
        self._array: NDArray[np.float16] | None = None
        self._inside: NDArray[np.float16] | None = None
        self._box: Probabilities | None = None

    def begin(self, probabilities: Probabilities) -> None:
        """Note the grid."""
        self._box = probabilities

    def add(self, start: int, slab: Tensor) -> None:
        """Take a slab: its first slice, counted from that of the box, and probabilities (K, d, H, W)."""
        if self._inside is None:
            self._inside = self._make(len(slab))
        self._inside[:, start : start + slab.shape[1]] = slab.cpu().numpy()

    def _make(self, num_outputs: int) -> NDArray[np.float16]:
        """Make the array; returns the part of it that is inside the box, with its axes turned upright."""
        assert self._box is not None
        shape = (num_outputs, *self._volume.shape)
        _allocate(self._waiting, 2 * int(np.prod(shape, dtype=np.int64)))
        self._array = np.memmap(self._waiting, mode="r+", dtype=np.float16, shape=shape)
        if not self._box.regions:
            self._array[0] = 1  # outside of the box all is background
        upright = Volume(self._array, self._volume.affine).turned("SPL").data
        inside: NDArray[np.float16] = upright[:, *self._box.box.slices]
        return inside

    def pack(self, path: Path) -> None:
        """Write the archive."""
        assert self._array is not None
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION) as archive,
            archive.open(f"{KEY}.npy", "w", force_zip64=True) as member,
        ):
            header: dict[str, Any] = np.lib.format.header_data_from_array_1_0(self._array)
            np.lib.format.write_array_header_1_0(member, header)
            flat = self._array.reshape(-1)
            for first in range(0, flat.size, _PIECE):
                member.write(flat[first : first + _PIECE].tobytes())


def _allocate(path: Path, num_bytes: int) -> None:
    """Take the room on disk, with zeros: a mapped file for which there is none would end the process.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return
        zeros = bytes(2 * _PIECE)
        for first in range(0, num_bytes, len(zeros)):
            file.write(zeros[: num_bytes - first])


@contextmanager
def probability_file(path: Path, volume: Volume) -> Iterator[ProbabilityFile]:
    """Take the probabilities of a scan and write them to ``path``, whole or not at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """
    with atomic_write(path) as temporary, scratch_file(path) as waiting:
        file = ProbabilityFile(waiting, volume)
        yield file
        file.pack(temporary)
