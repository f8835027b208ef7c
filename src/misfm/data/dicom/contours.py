"""Closed contours to masks, with the even-odd rule: a contour within another one is a hole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_CROSSINGS = 1 << 20
"""Of edges and rows that are worked on at once."""


def fill(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of pixels whose centre lies inside an odd number of polygons.

    A centre on an edge belongs to one of the two sides of it, so that polygons that share an edge neither
    overlap nor leave a gap.

    Args:
        polygons: each (N, 2), the (h, w) of its corners in pixels; closed by themselves, (0, 0) being the
            centre of the first pixel.
        shape: rows and columns.
    """
    height, width = shape
    toggles = np.zeros(height * (width + 1), np.int64)
    for edges in _pieces(polygons, height):
        (y0, x0, y1, x1), first, count = edges[:4], edges[4].astype(np.int64), edges[5].astype(np.int64)
        which = np.repeat(np.arange(len(count)), count)
        rows = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        across = x0[which] + (rows - y0[which]) * ((x1 - x0) / (y1 - y0))[which]
        columns = np.clip(np.ceil(across), 0, width).astype(np.int64)
        toggles += np.bincount(rows * (width + 1) + columns, minlength=len(toggles))
    inside = np.cumsum(toggles.reshape(height, width + 1), axis=1)[:, :width] % 2 == 1
    return np.asarray(inside)


def _pieces(polygons: Sequence[NDArray[np.float64]], height: int) -> Iterator[NDArray[np.float64]]:
    """Edges that cross rows, so many at a time that their crossings take little memory.

    Yields:
        (6, E): ends (y0, x0, y1, x1), the first row that is crossed, and how many are.
    """
    for polygon in polygons:
        ends = np.concatenate([polygon, np.roll(polygon, -1, axis=0)], axis=1).T
        low, high = np.minimum(ends[0], ends[2]), np.maximum(ends[0], ends[2])
        first = np.clip(np.ceil(low), 0, height)
        count = np.clip(np.ceil(high), 0, height) - first
        edges = np.stack([*ends, first, count])[:, count > 0]
        step = max(1, _MOST_CROSSINGS // max(1, height))
        for start in range(0, edges.shape[1], step):
            yield edges[:, start : start + step]
