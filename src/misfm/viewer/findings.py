"""What is known of a case before anybody looks: volumes, Dice, where errors are, where the worst slice is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from misfm.data.intensity import Kind
from misfm.data.label_scheme import mask_of
from misfm.viewer.cases import Labels
from misfm.volume import Volume, nearest_axes

MISSED, TOO_MUCH, CONFUSED = 1, 2, 3
"""Values of a map of differences: the prediction has no label, one where there is none, another one."""
DIFFERENCES = {"missed": "#56b4e9", "too much": "#e69f00", "other label": "#f0e442"}
"""What these are called, in their order, and the colour of each."""
COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#4477ff"),
    *("#ffb380", "#8fe3ff", "#66ccaa", "#a6a042", "#b06020", "#eeaadd", "#99aaff"),
)
"""Of labels: those of Okabe and Ito, which colour-blind people tell apart, then lighter and darker ones."""
MOST_LABELS = 255
"""That can be told apart; values beyond are shown as the last."""
CT_WINDOWS = {
    "Soft tissue": (-160, 240),
    "Brain": (0, 80),
    "Bone": (-450, 1050),
    "Lung": (-1350, 150),
    "Liver": (-20, 180),
}
"""Lowest and highest HU, as radiologists have them."""

Voxels = NDArray[Any]
Slices = tuple[slice, ...]


def windows(voxels: Voxels, kind: Kind) -> list[dict[str, Any]]:
    """Return intensities that are black and white, several to choose from, the usual one first.

    Args:
        voxels: (D, H, W) of one channel.
        kind: of the channel.
    """
    sample = voxels.reshape(-1)[:: max(1, voxels.size // 500_000)].astype(np.float64)
    low, high = float(voxels.min()), float(voxels.max())
    shown = sample[sample > low] if kind != "ct" else sample
    one, five, most, top = np.percentile(shown if len(shown) else sample, (1, 10, 90, 99.7))
    found: dict[str, tuple[float, float]] = dict(CT_WINDOWS) if kind == "ct" else {}
    if kind == "ct" and not (low < 40 < high):
        found = {}
    if not found:
        found = {"Automatic": (one, top), "More contrast": (five, most)}
    found["All"] = (low, high)
    wide = {name: (a, b) for name, (a, b) in found.items() if b > a} or {"All": (low, low + 1)}
    return [{"name": name, "low": float(a), "high": float(b)} for name, (a, b) in wide.items()]


def labels_in(known: Labels | None, *label_maps: Volume, ignore: int | None = None) -> Labels:
    """Return the labels to show: those that have names, and under a number those that occur without one."""
    found: set[int] = set()
    for label_map in label_maps:
        found |= {value for value, box in enumerate(find_objects(label_map.data[0]), 1) if box is not None}
    named = dict(known or {})
    others = found - {ignore, *(value for own in named.values() for value in own)}
    return named | {f"label {value}": (value,) for value in sorted(others)}


def renumbered(label_map: Volume, labels: Labels) -> Voxels:
    """Return a label map (D, H, W) uint8 with the place of each label, from 1 on; of regions the smallest."""
    data = label_map.data[0]
    table = np.zeros(int(data.max(initial=0)) + 1, np.uint8)
    for place, own in sorted(enumerate(labels.values(), start=1), key=lambda one: -len(one[1])):
        inside = [value for value in own if value < len(table)]
        table[inside] = min(place, MOST_LABELS)
    shown: Voxels = table[data]
    return shown


def table_of(labels: Labels, maps: Mapping[str, Volume], ignore: int | None) -> list[dict[str, Any]]:
    """Return for each label its name, colour, millilitres in each label map, Dice and where it is.

    Args:
        labels: what there is.
        maps: ``reference`` and ``prediction``, those there are; of different shapes they have no Dice.
        ignore: value of a reference that belongs to no label.
    """
    rows: list[dict[str, Any]] = []
    reference = maps.get("reference")
    can_compare = len({volume.shape for volume in maps.values()}) == 1 < len(maps)
    boxes = {which: find_objects(volume.data[0]) for which, volume in maps.items()}
    for place, (name, own) in enumerate(labels.items()):
        row: dict[str, Any] = {"name": name, "colour": COLOURS[place % len(COLOURS)]}
        around: list[Slices] = []
        for which, volume in maps.items():
            box = joined([boxes[which][value - 1] for value in own if value <= len(boxes[which])])
            mask = mask_of(volume.data[0][box], own)
            row[f"{which}_ml"] = int(np.count_nonzero(mask)) * millilitres(volume)
            if mask.any():
                inside = nearest_to_middle(mask)
                row["centre"] = in_mm(volume, [a + side.start for a, side in zip(inside, box, strict=True)])
                around.append(box)
        if can_compare:
            box = joined(around)
            masks = {which: mask_of(volume.data[0][box], own) for which, volume in maps.items()}
            judged = None if ignore is None or reference is None else reference.data[0][box] != ignore
            row["dice"] = dice_of(masks["reference"], masks["prediction"], judged)
        rows.append(row)
    return rows


def joined(boxes: Sequence[Slices | None]) -> Slices:
    """Return the smallest box around several, an empty one where there are none."""
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * 3
    sides = zip(*found, strict=True)
    return tuple(slice(min(one.start for one in side), max(one.stop for one in side)) for side in sides)


def dice_of(one: Voxels, other: Voxels, judged: Voxels | None) -> float | None:
    """Return the Dice of two masks, None where both are empty; ``judged``: the voxels that count."""
    if judged is not None:
        one, other = one & judged, other & judged
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else None


def millilitres(volume: Volume) -> float:
    """Return the millilitres of a voxel."""
    return abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000


def difference(reference: Voxels, prediction: Voxels, judged: Voxels | None = None) -> Voxels:
    """Return where two label maps (D, H, W) differ, uint8: see :data:`MISSED` and what follows it."""
    found = np.zeros(reference.shape, np.uint8)
    wrong = reference != prediction
    if judged is not None:
        wrong &= judged
    found[wrong] = CONFUSED
    found[wrong & (prediction == 0)] = MISSED
    found[wrong & (reference == 0)] = TOO_MUCH
    return found


def outline(label_map: Voxels, axis: int) -> Voxels:
    """Return a label map (D, H, W) that keeps the border of each label within the slices across an axis."""
    border = np.zeros(label_map.shape, np.bool_)
    for side in range(3):
        if side == axis:
            continue
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[side], behind[side] = slice(1, None), slice(None, -1)
        differs = label_map[tuple(ahead)] != label_map[tuple(behind)]
        border[tuple(ahead)] |= differs
        border[tuple(behind)] |= differs
    return np.where(border, label_map, 0).astype(label_map.dtype)


def slice_axis(volume: Volume) -> int:
    """Return the axis across which slices were taken: of the largest spacing, else from feet to head."""
    spacing = volume.spacing
    upright = nearest_axes(volume.affine).index(2)
    return max(range(3), key=lambda axis: (round(spacing[axis], 3), axis == upright))


def worst_slice(volume: Volume, wrong: Voxels) -> dict[str, Any] | None:
    """Say in which slice the most voxels are wrong, and where in it; None where none is.

    Args:
        volume: on the same grid.
        wrong: (D, H, W), not 0 where the prediction differs.
    """
    axis = slice_axis(volume)
    others = tuple(side for side in range(3) if side != axis)
    counts = np.count_nonzero(wrong, axis=others)
    if not counts.any():
        return None
    worst = int(counts.argmax())
    there = np.take(wrong, worst, axis=axis) > 0
    place = list(nearest_to_middle(there))
    place.insert(axis, worst)
    area = float(np.prod([volume.spacing[side] for side in others])) * int(counts[worst])
    text = f"slice {worst + 1} of {len(counts)}: {area:,.0f} mm² differ"
    return {"mm": in_mm(volume, place), "text": text}


def fullest_place(volume: Volume, label_map: Voxels) -> list[float]:
    """Return where to look first, in mm: the slice with the most labelled voxels, else the middle."""
    if not label_map.any():
        return in_mm(volume, [side // 2 for side in volume.shape])
    axis = slice_axis(volume)
    counts = np.count_nonzero(label_map, axis=tuple(side for side in range(3) if side != axis))
    fullest = int(counts.argmax())
    place = list(nearest_to_middle(np.take(label_map, fullest, axis=axis) > 0))
    place.insert(axis, fullest)
    return in_mm(volume, place)


def nearest_to_middle(mask: Voxels) -> tuple[int, ...]:
    """Return the voxel of a mask, of any number of axes, that is nearest to the middle of the mask."""
    places = np.argwhere(mask)
    middle = places.mean(axis=0)
    return tuple(int(v) for v in places[((places - middle) ** 2).sum(axis=1).argmin()])


def in_mm(volume: Volume, place: Sequence[int]) -> list[float]:
    """Return the RAS mm of a voxel."""
    found: list[float] = (volume.affine @ [*place, 1.0])[:3].tolist()
    return found


def mean_dice(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean Dice over the labels that have one."""
    known = [row["dice"] for row in rows if row.get("dice") is not None]
    return sum(known) / len(known) if known else None
