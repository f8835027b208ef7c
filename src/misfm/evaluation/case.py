"""Scores of one predicted label map against its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from misfm.data.label_scheme import mask_of, whole
from misfm.errors import DataError
from misfm.evaluation import metrics
from misfm.evaluation.metrics import LabelMap, Mask
from misfm.volume import FloatTriple, Volume, grid_difference

_LARGEST_LABEL = 65_535

Label = TypeVar("Label")


@dataclass(frozen=True)
class LabelScores:
    """Agreement on one label of one case.

    Attributes:
        dice: overlap, 0 to 1.
        hd95_mm: 95 % Hausdorff distance; ``None`` where infinite, that is, absent in one of the two.
        assd_mm: average symmetric surface distance; ``None`` where infinite.
        surface_dice: share of both surfaces within the tolerance, 0 to 1.
    """

    dice: float
    hd95_mm: float | None
    assd_mm: float | None
    surface_dice: float


ABSENT_IN_ONE = LabelScores(dice=0.0, hd95_mm=None, assd_mm=None, surface_dice=0.0)


def evaluate_case(
    prediction: Volume,
    reference: Volume,
    labels: Sequence[int] | Mapping[Label, Sequence[int]],
    *,
    tolerance_mm: float | None = None,
    ignore: int | None = None,
) -> dict[Label, LabelScores | None]:
    """Score a predicted label map; see `misfm.evaluation.metrics` for the conventions.

    Args:
        prediction: label map (1, D, H, W) on the grid of the reference.
        reference: label map (1, D, H, W).
        labels: the positive values to score; others count as background. Or, under whatever the scores shall
            go by, the values that count as one: regions may overlap.
        tolerance_mm: of the surface Dice; by default the diagonal of a voxel.
        ignore: value of the reference that marks voxels nobody has judged. They belong to no mask, so where
            a structure runs into them both masks end at the same cut.

    Returns:
        Scores by label; ``None`` for one absent in both.

    Raises:
        DataError: the grids differ, or the voxels are not labels.
    """
    check_same_grid(prediction, reference)
    true, predicted = label_values(reference, "reference"), label_values(prediction, "prediction")
    if ignore is not None:
        judged = true != ignore
        true, predicted = true * judged, predicted * judged
    held: Mapping[Any, Sequence[int]] = (
        labels if isinstance(labels, Mapping) else {label: (label,) for label in labels}
    )
    values = list(dict.fromkeys(value for own in held.values() for value in own))
    true, predicted = metrics.compact(true, values), metrics.compact(predicted, values)
    confusion = metrics.confusion_matrix(predicted, true, len(values) + 1)
    tolerance = metrics.voxel_diagonal(reference.spacing) if tolerance_mm is None else tolerance_mm

    places = {value: place for place, value in enumerate(values, start=1)}
    groups = [[places[value] for value in own] for own in held.values()]
    scores: dict[Any, LabelScores | None] = {}
    for label, group, dice in zip(held, groups, metrics.dice(confusion, groups), strict=True):
        if dice is None:
            scores[label] = None
        elif not (confusion[group].any() and confusion[:, group].any()):
            scores[label] = ABSENT_IN_ONE
        else:
            found, there = mask_of(predicted, group), mask_of(true, group)
            scores[label] = _score(found, there, reference.spacing, dice, tolerance)
    return scores


def check_same_grid(prediction: Volume, reference: Volume) -> None:
    """Raise a DataError unless both lie on the same grid; see :func:`misfm.volume.grid_difference`."""
    if difference := grid_difference(prediction, reference):
        raise DataError(
            f"The prediction lies on another grid than its reference: {difference}; predict on the grid of "
            "the image the reference was drawn on."
        )


def label_values(volume: Volume, what: str) -> LabelMap:
    """Return the voxels of a label map as integers (D, H, W).

    Raises:
        DataError: several channels, fractions, or values below 0 or above 65535; names it by ``what``.
    """
    if volume.data.shape[0] != 1:
        raise DataError(f"The {what} has {volume.data.shape[0]} channels; a label map has one.")
    data = whole(volume.data[0])
    if data is not None and data.min(initial=0) >= 0 and data.max(initial=0) <= _LARGEST_LABEL:
        values: LabelMap = data.astype(np.uint16)
        return values
    raise DataError(
        f"The {what} is no label map: it holds values other than the whole numbers 0 to {_LARGEST_LABEL}."
    )


def _score(
    prediction: Mask, reference: Mask, spacing: FloatTriple, dice: float, tolerance_mm: float
) -> LabelScores:
    distances = metrics.surface_distances(prediction, reference, spacing)
    return LabelScores(
        dice=dice,
        hd95_mm=metrics.hd95(distances),
        assd_mm=metrics.assd(distances),
        surface_dice=metrics.surface_dice(distances, tolerance_mm),
    )
