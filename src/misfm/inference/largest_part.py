"""Clean-up of label maps: of an organ that is one piece in every patient, keep the largest part only.

Voxels belong to one part where they share a face, an edge or a corner, so that thin organs hold together.
What is removed becomes background. Work and memory are those of the box around a label, not of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LabelMap = NDArray[np.integer[Any]]

ONE_PIECE = 0.99
"""Share of a label's voxels that its largest part holds at least, for the label to be one piece."""

_TOUCHING = np.ones((3, 3, 3), np.int8)


def keep_largest_parts(label_map: LabelMap, labels: Sequence[int]) -> tuple[int, ...]:
    """Turn voxels of ``labels`` outside of the largest part of their label into background, in place.

    Args:
        label_map: (D, H, W), values from 0.
        labels: the values to clean; of parts of one size the first voxel of the array decides.

    Returns:
        The labels that lost voxels.
    """
    changed = []
    for label, inside, parts, sizes in _parts_of(label_map, labels):
        if len(sizes) > 1:
            largest = sizes.argmax() + 1
            for voxels, found in zip(inside, parts, strict=True):  # a slice at a time: bounded memory
                voxels[(found != 0) & (found != largest)] = 0
            changed.append(label)
    return tuple(changed)


def labels_in_pieces(label_map: LabelMap, labels: Sequence[int]) -> set[int]:
    """Return those of ``labels`` that are in ``label_map`` (D, H, W), but not as one piece."""
    found = _parts_of(label_map, labels)
    return {label for label, _, _, sizes in found if sizes.max() < ONE_PIECE * sizes.sum()}


def _parts_of(
    label_map: LabelMap, labels: Sequence[int]
) -> Iterator[tuple[int, LabelMap, NDArray[np.int32], NDArray[np.int64]]]:
    """Yield each label that is there, the box around it, the parts in it (0: others) and their sizes."""
    if not labels:
        return
    boxes = ndimage.find_objects(label_map, max_label=max(labels))
    for label in labels:
        if boxes[label - 1] is not None:
            inside = label_map[boxes[label - 1]]
            parts, count = ndimage.label(inside == label, _TOUCHING)
            sizes = np.zeros(count + 1, np.int64)
            for found in parts:
                sizes += np.bincount(found.ravel(), minlength=count + 1)
            yield label, inside, parts, sizes[1:]
