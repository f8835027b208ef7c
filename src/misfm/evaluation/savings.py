"""What pretraining saves: the labels and steps that training from scratch needs for the same Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise


def labels_worth(scratch: Mapping[int, float], dice: float) -> float | None:
    """Return with how many labels training from scratch reaches a Dice.

    Between two budgets the Dice is taken to rise with the logarithm of the number of labels.

    Args:
        scratch: mean Dice by number of labels.
        dice: to be reached.

    Returns:
        The number of labels; None if no pair of neighbouring budgets has ``dice`` between them.
    """
    for few, many in pairwise(sorted(scratch)):
        low, high = scratch[few], scratch[many]
        if low <= dice <= high:
            share = (dice - low) / (high - low) if high > low else 0.0
            return float(few * (many / few) ** share)
    return None


def steps_to_reach(curve: Sequence[tuple[int, float]], dice: float) -> float | None:
    """Return after how many steps a learning curve reaches a Dice for the first time.

    Args:
        curve: (step, Dice) in order, taken to be straight in between.
        dice: to be reached.

    Returns:
        The steps; None if the curve never gets there.
    """
    if curve and curve[0][1] >= dice:
        return float(curve[0][0])
    for (before, low), (after, high) in pairwise(curve):
        if high >= dice:
            return before + (after - before) * (dice - low) / (high - low)
    return None
