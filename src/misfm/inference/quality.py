"""What a prediction knows about itself: the Dice to expect of it, and how unsure each voxel is.

Were class probabilities true ones, the Dice that a label map is going to have would be about twice its
overlap with them over the sum of both. Networks are too sure of themselves, so this comes out too high; but
it falls where Dice falls (``benchmarks/quality.py``), and a power of it, fitted on validation cases, has
their mean Dice. Averages over the members of an ensemble count their disagreement, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfm.inference.grid import reorient
from misfm.inference.predictor import Probabilities
from misfm.volume import Volume
from misfm.weights.quality import MOST_POWER, QualityScale

MARGIN = 0.02
"""Dice that is no difference: estimates of scans like those of the validation cases err by as much."""
LOW_SHARE = 0.05
"""Of the validation cases, that are expected to be no better: a label map with so few is to be looked at."""


class Tally:
    """Sums over a label map and its probabilities, slab by slab: a watcher of a prediction."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._regions = False

    def begin(self, probabilities: Probabilities) -> None:
        """Start anew."""
        self._sums, self._regions = None, probabilities.regions

    def add(self, start: int, slab: Tensor) -> None:
        """Count a slab (K, d, h, w) of classes, the background first, or of regions."""
        p = slab.flatten(1)
        mass = p.sum(dim=1, dtype=torch.float64)
        if self._regions:
            found = p > 0.5
            sums = torch.stack([(p * found).sum(dim=1, dtype=torch.float64), found.sum(dim=1).double(), mass])
        else:
            best = p.max(dim=0)
            inside = mass.new_zeros(len(p)).scatter_add_(0, best.indices, best.values.double())
            voxels = torch.bincount(best.indices, minlength=len(p)).double()
            sums = torch.stack([inside, voxels, mass])[:, 1:]
        sums = sums.cpu()
        self._sums = sums if self._sums is None else self._sums + sums

    def estimates(self) -> list[float | None]:
        """Raw estimate of the Dice of each label, [0, 1]; None where nothing was labelled so."""
        if self._sums is None:
            return []
        inside, voxels, mass = self._sums.tolist()
        return [
            2 * shared / (count + total) if count else None
            for shared, count, total in zip(inside, voxels, mass, strict=True)
        ]


def expected_dice(estimates: Sequence[float | None], scale: QualityScale | None = None) -> list[float | None]:
    """Turn raw estimates into the Dice to expect; unchanged, and thus too high, where nothing is known."""
    powers = scale.powers if scale is not None else [1.0] * len(estimates)
    return [None if raw is None else raw**power for raw, power in zip(estimates, powers, strict=True)]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean over the labels that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


@dataclass(frozen=True)
class Quality:
    """What is to be expected of a label map.

    Attributes:
        labels: Dice to expect by label; None where nothing was labelled so.
        expected_dice: their mean; None where nothing was labelled at all.
        reference: the same of the validation cases, sorted; empty where too few are known, and then nothing
            is expected: a network's own account alone can be far too high, or too low after few steps.
        is_empty: whether nothing was labelled.
    """

    labels: Mapping[str, float | None]
    expected_dice: float | None
    reference: Sequence[float] = ()
    is_empty: bool = False

    @property
    def is_low(self) -> bool:
        """Whether nearly all validation cases, or every single one, were expected to be clearly better."""
        if self.is_empty or self.expected_dice is None:
            return bool(self.reference)
        not_better = sum(one <= self.expected_dice + MARGIN for one in self.reference)
        return bool(self.reference) and not_better <= LOW_SHARE * len(self.reference)

    @property
    def sentence(self) -> str:
        """What to expect, for people."""
        if self.is_empty:
            return "nothing was labelled" + (": look at it" if self.is_low else "")
        if self.expected_dice is None or not self.reference:
            return "no Dice to expect: the weights know of fewer than two validation cases"
        said = f"expected Dice {self.expected_dice:.2f}"
        among = f"{len(self.reference)} validation cases, {self.reference[0]:.2f} to {self.reference[-1]:.2f}"
        if not self.is_low:
            return f"{said} (like its {among})"
        is_lowest = self.expected_dice < self.reference[0]
        return f"{said} ({'below all' if is_lowest else 'at the lower end'} of its {among}): look at it"

    def as_json(self) -> dict[str, Any]:
        """What ``predictions.json`` holds."""
        dice = {name: None if one is None else round(one, 4) for name, one in self.labels.items()}
        mean = None if self.expected_dice is None else round(self.expected_dice, 4)
        return {
            "expected_dice": mean,
            "labels": dice,
            "calibrated": bool(self.reference),
            "says": self.sentence,
        }


def quality_of(tally: Tally, names: Sequence[str], scale: QualityScale | None) -> Quality:
    """Read the estimates of a label map.

    Args:
        tally: of its prediction.
        names: of the labels, in the order of the classes.
        scale: of the weights.
    """
    estimates = tally.estimates()
    is_empty = all(one is None for one in estimates)
    if scale is None:
        return Quality(dict.fromkeys(names), None, is_empty=is_empty)
    expected = expected_dice(estimates, scale)
    return Quality(dict(zip(names, expected, strict=True)), mean_of(expected), scale.reference, is_empty)


def scale_of_members(scales: Sequence[QualityScale | None]) -> QualityScale | None:
    """Return what to read the estimates of an ensemble with; None where a member has no scale.

    The mean of several is less sure of itself than each of them: the root of their powers is what was
    measured to fit (``benchmarks/quality.py``), where that of a single network would be far too low.
    """
    known = [scale for scale in scales if scale is not None]
    if len(known) < len(scales) or len({len(scale.powers) for scale in known}) != 1:
        return None
    if len(known) == 1:
        return known[0]
    powers = [float(np.exp(np.mean(np.log(own)) / 2)) for own in zip(*(s.powers for s in known), strict=True)]
    reference = sorted(one for scale in known for one in scale.reference)
    return QualityScale(powers=tuple(powers), reference=tuple(reference))


def fit_scale(
    estimates: Mapping[str, Sequence[float | None]], dice: Mapping[str, Sequence[float | None]]
) -> QualityScale | None:
    """Fit the power of each label on labelled cases, such that the mean of both is the same.

    Args:
        estimates: raw, of each label, by case.
        dice: measured, likewise; None where a label is in neither label map.

    Returns:
        None with fewer than two cases, or where there are no estimates.
    """
    num_labels = len(next(iter(estimates.values()), ()))
    if len(estimates) < 2 or not num_labels:
        return None
    pairs: list[list[tuple[float, float]]] = [[] for _ in range(num_labels)]
    for case, raw in estimates.items():
        for label, (one, measured) in enumerate(zip(raw, dice[case], strict=True)):
            if one is not None and measured is not None:
                pairs[label].append((one, measured))
    pooled = [pair for found in pairs for pair in found]
    powers = tuple(_power(found or pooled) for found in pairs)
    scale = QualityScale(powers=powers)
    means = [mean_of(expected_dice(raw, scale)) for raw in estimates.values()]
    return scale.model_copy(update={"reference": tuple(sorted(one or 0.0 for one in means))})


def _power(pairs: Sequence[tuple[float, float]]) -> float:
    """The power of estimates whose mean is that of Dice, by bisection; one where nothing is known."""
    if not pairs:
        return 1.0
    wanted = sum(measured for _, measured in pairs) / len(pairs)
    low, high = 1 / MOST_POWER, MOST_POWER
    for _ in range(60):
        middle = (low * high) ** 0.5
        mean = sum(raw**middle for raw, _ in pairs) / len(pairs)
        low, high = (middle, high) if mean > wanted else (low, middle)
    return float((low * high) ** 0.5)


class UncertaintyMap:
    """How unsure each voxel is, the probability of anything but its label: a watcher of a prediction."""

    def begin(self, probabilities: Probabilities) -> None:
        """Start anew; what lies outside the patient's box is sure."""
        self._upright = probabilities.upright
        self._box = probabilities.box
        self._regions = probabilities.regions
        self._values = np.zeros(self._upright.shape, np.float32)

    def add(self, start: int, slab: Tensor) -> None:
        """Note a slab (K, d, h, w); of regions the least sure one counts."""
        unsure = torch.minimum(slab, 1 - slab).amax(dim=0) if self._regions else 1 - slab.amax(dim=0)
        self._values[self._box.slices][start : start + slab.shape[1]] = unsure.clamp(0, 1).cpu().numpy()

    def of(self, volume: Volume) -> Volume:
        """Return the map (1, D, H, W) float32, [0, 1], on the grid of the scan that was labelled."""
        values: NDArray[np.float32] = reorient(self._values, self._upright.affine, volume.affine)
        return volume.with_data(values[None])
