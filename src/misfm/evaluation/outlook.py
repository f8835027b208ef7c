"""What more steps would bring, as far as the validation curve of a run says."""

from __future__ import annotations

from collections.abc import Sequence

LAST = 1 / 3
"""Share of the steps whose rise is looked at."""
WORTHWHILE = 0.01
"""Rise of Dice from which on more steps are suggested; validations of one plateau differ by as much."""


def outlook(curve: Sequence[tuple[int, float]]) -> str | None:
    """Say how far validation Dice rose over the last third of the steps, and what follows from it.

    It is the best of the last third above the best before. Some of that is the rate's, which falls to zero
    towards the end of nearly every schedule: more steps bring less than the rise looks like.

    Args:
        curve: (step, Dice) of each validation.

    Returns:
        The sentence; None where there are too few validations to say anything.
    """
    if not curve:
        return None
    since = curve[-1][0] * (1 - LAST)
    before = [dice for step, dice in curve if step <= since]
    after = [dice for step, dice in curve if step > since]
    if len(before) < 2:
        return None
    rise = max(after) - max(before)
    if rise < WORTHWHILE:
        change = f"rose by {rise:.3f}" if rise > 0 else "did not rise"
        return f"Validation Dice {change} over the last third of the steps: more would bring little."
    return (
        f"Validation Dice rose by {rise:.3f} over the last third of the steps, some of it as the rate fell: "
        "more --steps may bring more."
    )
