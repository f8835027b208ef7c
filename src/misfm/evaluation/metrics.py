"""How well two label maps agree: Dice by one confusion pass, and distances between surfaces in millimetres.

Conventions. The *surface* of a mask is every voxel of it with a face neighbour outside; outside of the array
counts as outside of the mask. Distances run between voxel centres, in millimetres.

===============  ===================================================================================
HD95             the larger of the two directed 95th percentiles (linear interpolation). MONAI agrees;
                 MedPy, and nnU-Net v1 through it, pool both directions before the percentile, which
                 gives a lower or equal value most of the time. nnU-Net v2 reports no distances.
ASSD             mean over the voxels of both surfaces pooled. MONAI agrees (``symmetric=True``);
                 MedPy averages the two directed means.
surface Dice     share of the voxels of both surfaces that lie within the tolerance of the other
                 surface. MONAI agrees (without sub-voxels); Nikolov et al. (arXiv 1809.04430), who
                 introduced it, weight each voxel with the area of its piece of surface.
===============  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray

from misfm.volume import FloatTriple, bounding_box

Mask = NDArray[np.bool_]
LabelMap = NDArray[np.integer[Any]]
Distances = NDArray[np.float32]

# edt computes in float32: a distance equal to the tolerance must not fall out by its rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in millimetres from each surface voxel of one mask to the nearest of the other.

    Attributes:
        from_prediction: one distance for each surface voxel of the prediction.
        from_reference: one distance for each surface voxel of the reference.
    """

    from_prediction: Distances
    from_reference: Distances


def compact(label_map: LabelMap, labels: Sequence[int]) -> LabelMap:
    """Renumber ``labels`` to 1, 2, ... in their order and everything else to 0.

    Args:
        label_map: non-negative integers, any shape.
        labels: distinct positive integers.
    """
    table = np.zeros(max(int(label_map.max(initial=0)), *labels, 0) + 1, np.min_scalar_type(len(labels)))
    table[list(labels)] = np.arange(1, len(labels) + 1)
    renumbered: LabelMap = table[label_map]
    return renumbered


def confusion_matrix(prediction: LabelMap, reference: LabelMap, num_classes: int) -> NDArray[np.int64]:
    """Count voxels by reference class (row) and predicted class (column) in one pass.

    Args:
        prediction: classes 0 .. ``num_classes - 1``, any shape.
        reference: the same, same shape.
        num_classes: K, background included.

    Returns:
        Shape (K, K).
    """
    # Most voxels are background in both: counting the others only saves their wide indices.
    labelled = (prediction != 0) | (reference != 0)
    pairs = reference[labelled].astype(np.intp) * num_classes + prediction[labelled]
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    counts[0, 0] = labelled.size - len(pairs)
    return counts.astype(np.int64)


def dice(confusion: NDArray[np.int64], groups: Sequence[Sequence[int]] | None = None) -> list[float | None]:
    """Dice from a confusion matrix (K, K); ``None``: absent in both.

    Args:
        confusion: voxels by reference class (row) and predicted class (column).
        groups: classes that count as one, for each number to be returned: regions may overlap. By default
            each class but the background by itself.
    """
    if groups is None:
        groups = [[place] for place in range(1, len(confusion))]
    scores: list[float | None] = []
    for group in groups:
        rows = confusion[list(group)]
        overlap, total = rows[:, list(group)].sum(), rows.sum() + confusion[:, list(group)].sum()
        scores.append(float(2 * overlap / total) if total else None)
    return scores


def surface(mask: Mask) -> Mask:
    """Return the voxels of ``mask`` (D, H, W) with a face neighbour outside of it or of the array."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        # np.roll wraps around, which the padding makes harmless.
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    result: Mask = mask & ~inner[(slice(1, -1),) * mask.ndim]
    return result


def surface_distances(prediction: Mask, reference: Mask, spacing: FloatTriple) -> SurfaceDistances:
    """Measure how far the surfaces of two masks (D, H, W) lie apart.

    Args:
        prediction: a mask with at least one voxel.
        reference: a mask with at least one voxel, same shape.
        spacing: millimetres per voxel along (D, H, W).

    Raises:
        ValueError: a mask is empty, so that no distance exists.
    """
    box = bounding_box(prediction | reference)
    if box is None or not (prediction.any() and reference.any()):
        raise ValueError("the surface of an empty mask has no distances")
    predicted, true = surface(prediction[box.slices]), surface(reference[box.slices])
    return SurfaceDistances(
        from_prediction=_distance_to(true, spacing)[predicted],
        from_reference=_distance_to(predicted, spacing)[true],
    )


def hd95(distances: SurfaceDistances) -> float:
    """Return the 95 % Hausdorff distance in millimetres: the larger of both directed percentiles."""
    directed = (distances.from_prediction, distances.from_reference)
    return max(float(np.percentile(d, 95)) for d in directed)


def assd(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance in millimetres, over both surfaces pooled."""
    pooled = np.concatenate([distances.from_prediction, distances.from_reference])
    return float(pooled.mean(dtype=np.float64))


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Return the share, 0 to 1, of both surfaces within ``tolerance_mm`` (inclusive) of each other."""
    pooled = np.concatenate([distances.from_prediction, distances.from_reference])
    return float((pooled <= tolerance_mm * (1 + _ROUNDING)).mean())


def voxel_diagonal(spacing: FloatTriple) -> float:
    """Return the length in millimetres of a voxel's space diagonal: the default tolerance."""
    return float(np.linalg.norm(spacing))


def _distance_to(voxels: Mask, spacing: FloatTriple) -> Distances:
    """Millimetres from every voxel to the nearest of ``voxels``."""
    result: Distances = edt.edt(np.ascontiguousarray(~voxels), anisotropy=spacing, parallel=1)
    return result
