"""How sure a mean or a difference is: bootstrap intervals and sign-flip tests, seeded and vectorised.

The case (a patient) is the unit of evidence: its labels, and its scores under several seeds, are not
independent of each other, so cases are what is resampled. Where there are several seeds of training these are
resampled too, because another training run would have given other scores on the very same cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RESAMPLES = 10_000
_MOST_EXACT_FLIPS = 12  # 2^12 = 4096 sign patterns are enumerated; more cases are sampled.


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How much ``a`` is above ``b`` on the same cases and seeds.

    Attributes:
        mean: mean of ``a - b``.
        interval: bootstrap interval of the mean; None with fewer than two cases.
        p_value: two-sided sign-flip p-value over cases.
        cases: number of cases.
        cases_ahead: cases on which ``a`` is strictly above ``b``, averaged over seeds.
        seeds: number of seeds.
    """

    mean: float
    interval: Interval | None
    p_value: float
    cases: int
    cases_ahead: int
    seeds: int

    def __str__(self) -> str:
        """Mean and interval in words, to stand in a sentence."""
        if self.interval is None:
            return f"{self.mean:+.3f} on a single case"
        return f"{self.mean:+.3f}, 95 % interval {self.interval.low:+.3f} to {self.interval.high:+.3f}"


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the percentile bootstrap interval of a mean (Efron 1979); None with fewer than two cases.

    With fewer than about ten cases percentile intervals come out too narrow; a single one, resampled, would
    give an interval of width zero.

    Args:
        values: one value a case, or shape (cases, seeds), where both axes are resampled independently;
            ``nan`` marks a missing value.
        confidence: share of the bootstrap distribution between the two ends, 0 to 1.
        resamples: number of bootstrap samples.
        seed: of the resampling; equal seeds and shapes draw equal cases, which makes differences paired.

    Raises:
        ValueError: there is no value.
    """
    table = _table(values)
    present = np.isfinite(table)
    if present.any(axis=1).sum() < 2:
        return None
    generator = np.random.default_rng(seed)
    case_weights, seed_weights = (
        generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in table.shape
    )
    totals = ((case_weights @ np.where(present, table, 0.0)) * seed_weights).sum(axis=1)
    counts = ((case_weights @ present.astype(float)) * seed_weights).sum(axis=1)
    drawn = counts > 0
    tail = 50 * (1 - confidence)
    low, high = np.percentile(totals[drawn] / counts[drawn], [tail, 100 - tail])
    return Interval(float(low), float(high))


def sign_flip_p_value(differences: ArrayLike, *, resamples: int = _RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of "differences are as often up as down" for their mean.

    Under that hypothesis every sign pattern was as likely as the one seen. Up to 12 cases all patterns are
    tried, above that ``resamples`` random ones, counting the observed one among them so that p is never 0.

    Args:
        differences: one value a case.
        resamples: number of random patterns.
        seed: of the patterns.

    Raises:
        ValueError: there is no value.
    """
    values = _table(differences)[:, 0]
    values = values[np.isfinite(values)]
    observed = abs(values.sum())
    if len(values) <= _MOST_EXACT_FLIPS:
        patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        extra = 0
    else:
        patterns = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(values)))
        extra = 1
    sums = np.abs((2 * patterns - 1) @ values)
    # Patterns equal to the observed one must count as such in spite of rounding.
    as_extreme = int((sums >= observed * (1 - 1e-12) - 1e-12).sum())
    return (as_extreme + extra) / (len(sums) + extra)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compare two arms scored on the same cases, with one or more seeds of training each.

    Differences are formed per case and seed; the bootstrap draws cases and, independently, seeds with
    replacement. The p-value flips signs of the cases' means over seeds, so it speaks about other patients and
    these training runs, whereas the interval speaks about other patients and other training runs.

    Args:
        a: shape (cases,) or (cases, seeds); ``nan`` marks a missing value.
        b: same shape; seed ``j`` of ``b`` is the twin of seed ``j`` of ``a``.
        confidence: of the interval, 0 to 1.
        resamples: number of bootstrap samples and of random sign patterns.
        seed: of the resampling.

    Raises:
        ValueError: shapes differ, or no case has a value in both.
    """
    first, second = _table(a), _table(b)
    if first.shape != second.shape:
        raise ValueError(f"paired values need equal shapes, got {first.shape} and {second.shape}")
    differences = first - second
    differences = differences[np.isfinite(differences).any(axis=1)]
    interval = bootstrap_interval(differences, confidence=confidence, resamples=resamples, seed=seed)
    by_case = np.nanmean(differences, axis=1)
    return PairedDifference(
        mean=float(np.nanmean(differences)),
        interval=interval,
        p_value=sign_flip_p_value(by_case, resamples=resamples, seed=seed),
        cases=len(by_case),
        cases_ahead=int((by_case > 0).sum()),
        seeds=differences.shape[1],
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number, by Holm's step-down rule (1979).

    The smallest of n is multiplied by n, the next by n - 1, …; none ends below a smaller one, none above 1.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return corrected


def _table(values: ArrayLike) -> NDArray[np.float64]:
    """Values as (cases, seeds)."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not np.isfinite(table).any():
        raise ValueError(f"expected (cases,) or (cases, seeds) with a finite value, got shape {table.shape}")
    return table
