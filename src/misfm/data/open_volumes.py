"""Volume files held open: opening one takes as long as reading a small patch of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from misfm.volume import Box

MOST = 64
"""Files that a thread holds open; those of a large store are hardly met again, however many it held."""


class _Held(threading.local):
    """What one thread holds: decompressing keeps state in an array, so no two threads may share one."""

    def __init__(self) -> None:
        self.arrays: OrderedDict[str, tuple[tuple[int, int, int], Any]] = OrderedDict()


_held = _Held()


def opened(file: Path) -> Any:
    """Return the array of a ``.b2nd`` file, opened anew if the file has changed.

    A forked process goes on with what its parent has opened: a mapped file stays mapped, and without threads
    of its own an array needs nothing that a fork would lose.

    Raises:
        OSError: it is missing or cannot be read.
        RuntimeError: it is damaged.
        ValueError: it is damaged.
    """
    status = file.stat()
    state, name = (status.st_ino, status.st_mtime_ns, status.st_size), str(file)
    known, array = _held.arrays.pop(name, (None, None))
    if known != state:
        array = blosc2.open(name, mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
    _held.arrays[name] = (state, array)
    while len(_held.arrays) > MOST:
        _held.arrays.popitem(last=False)
    return array


def read_box(array: Any, box: Box) -> NDArray[Any]:
    """Read a box, which must lie within it, of an array (C, D, H, W): its voxels (C, d, h, w)."""
    start, stop = (0, *box.start), (array.shape[0], *box.stop)
    voxels = np.empty([b - a for a, b in zip(start, stop, strict=True)], dtype=array.dtype)
    if voxels.size:
        # What array[...] ends up calling, after as long again with keys of all other kinds.
        array.get_slice_numpy(voxels, (start, stop))
    return voxels
