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
        The number of labels; None if scratch has more at the smallest budget, or less at all of them.
    """
    budgets = sorted(scratch)
    if not budgets or scratch[budgets[0]] > dice:
        return None
    for few, many in pairwise(budgets):
        low, high = scratch[few], scratch[many]
        if low == dice:
            return float(few)
        if high >= dice:
            return float(few * (many / few) ** ((dice - low) / (high - low)))
    return float(budgets[-1]) if scratch[budgets[-1]] == dice else None


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
