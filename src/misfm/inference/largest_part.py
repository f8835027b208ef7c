"""Clean-up of label maps: of an organ that is one piece in every patient, keep the largest part only.

Voxels belong to one part where they share a face, an edge or a corner, so that thin organs hold together.
Work and memory are those of the box around a label, not of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from misfm.data.label_scheme import LabelScheme, mask_of

LabelMap = NDArray[np.integer[Any]]

ONE_PIECE = 0.99
"""Share of a label's voxels that its largest part holds at least, for the label to be one piece."""

_TOUCHING = np.ones((3, 3, 3), np.int8)


def keep_largest_parts(
    label_map: LabelMap,
    labels: Sequence[int],
    scheme: LabelScheme | None = None,
    *,
    lost: dict[int, float] | None = None,
) -> tuple[int, ...]:
    """Take voxels outside of the largest part of a label away from it, in place.

    They become background; where regions overlap, what lies around that region.

    Args:
        label_map: (D, H, W), values from 0.
        labels: the values to clean; of parts of one size the first voxel of the array decides.
        scheme: which values each label has; by default its own.
        lost: gets, for each label that lost voxels, the size of the largest part it lost over that it kept.

    Returns:
        The labels that lost voxels.
    """
    changed = []
    for label, inside, parts, sizes in _parts_of(label_map, labels, scheme):
        if len(sizes) > 1:
            largest = sizes.argmax() + 1
            left = {label: 0} if scheme is None else scheme.without(label)
            for voxels, found in zip(inside, parts, strict=True):  # a slice at a time: bounded memory
                others = (found != 0) & (found != largest)
                values = voxels[others]
                for value, rest in left.items():
                    values[values == value] = rest
                voxels[others] = values
            changed.append(label)
            if lost is not None:
                lost[label] = float(np.sort(sizes)[-2] / sizes.max())
    return tuple(changed)


def labels_in_pieces(
    label_map: LabelMap, labels: Sequence[int], scheme: LabelScheme | None = None
) -> set[int]:
    """Return those of ``labels`` that are in ``label_map`` (D, H, W), but not as one piece."""
    found = _parts_of(label_map, labels, scheme)
    return {label for label, _, _, sizes in found if sizes.max() < ONE_PIECE * sizes.sum()}


def _parts_of(
    label_map: LabelMap, labels: Sequence[int], scheme: LabelScheme | None
) -> Iterator[tuple[int, LabelMap, NDArray[np.int32], NDArray[np.int64]]]:
    """Yield each label that is there, the box around it, the parts in it (0: others) and their sizes.

    A region is looked for when its turn comes: those before it may have lost voxels of it.
    """
    values: dict[int, tuple[int, ...]] = {label: (label,) for label in labels}
    if scheme is not None:
        values = {label: own for label, own in scheme.by_code.items() if label in labels}  # outer ones first
    largest = max((value for own in values.values() for value in own), default=0)
    boxes = None
    for label, own in values.items():
        if boxes is None or len(own) > 1:
            boxes = ndimage.find_objects(label_map, max_label=largest)
        box = _around([boxes[value - 1] for value in own])
        inside = None if box is None else label_map[box]
        mask = None if inside is None else mask_of(inside, own)
        if inside is None or mask is None or not mask.any():
            continue
        parts, count = ndimage.label(mask, _TOUCHING)
        sizes = np.zeros(count + 1, np.int64)
        for found in parts:
            sizes += np.bincount(found.ravel(), minlength=count + 1)
        yield label, inside, parts, sizes[1:]


def _around(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """Return the smallest box around others, None around none."""
    there = [box for box in boxes if box is not None]
    if len(there) < 2:
        return there[0] if there else None
    return tuple(
        slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*there, strict=True)
    )
