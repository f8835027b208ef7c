"""Means over cases, how sure they are, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from misfm.evaluation.case import LabelScores
from misfm.evaluation.statistics import bootstrap_interval

METRICS = ("dice", "hd95_mm", "assd_mm", "surface_dice")

Values = NDArray[np.float64]
T = TypeVar("T")
CaseScores = Mapping[str, LabelScores | None]


def as_result(cases: Mapping[str, CaseScores], labels: Sequence[str]) -> dict[str, Any]:
    """Return ``cases``, with None for a label without scores, and what :func:`summarise` makes of them.

    Args:
        cases: scores by case name and label; labels that were not annotated in a case are missing.
        labels: all of them, in the order to be given.
    """
    rows = {name: {label: scores.get(label) for label in labels} for name, scores in cases.items()}
    return {
        "cases": {name: {k: s and asdict(s) for k, s in row.items()} for name, row in rows.items()},
        **summarise(cases, labels),
    }


def summarise(cases: Mapping[str, CaseScores], labels: Sequence[str]) -> dict[str, Any]:
    """Average over cases, for each label and for ``"all"``.

    A label absent in both prediction and reference is left out. Infinite distances are left out of the means
    of distances, which therefore look better than they are: read them together with ``counts``. ``"all"``
    averages each case over its labels first and then over cases, so that the case stays the unit.

    Args:
        cases: scores by case name and label; labels that were not annotated in a case are missing.
        labels: all of them.

    Returns:
        ``mean[label][metric]``, ``None`` without a value; ``interval95[label][metric]``, the ends of the
        bootstrap interval of that mean, ``None`` with fewer than two cases; ``counts[label]`` with
        ``scored``, ``absent_in_both`` and ``infinite_distances``, numbers of cases in which the label was
        annotated (summed over labels for ``"all"``).
    """
    values = np.array([[_row(case.get(label)) for label in labels] for case in cases.values()])
    values = values.reshape(len(cases), len(labels), len(METRICS))
    columns = {label: values[:, i] for i, label in enumerate(labels)} | {"all": _mean(values, axis=1)}
    counts = {label: _count(label, cases.values()) for label in labels}
    return {
        "mean": {k: _by_metric(v, _mean_value) for k, v in columns.items()},
        "interval95": {k: _by_metric(v, _interval) for k, v in columns.items()},
        "counts": counts | {"all": {k: sum(c[k] for c in counts.values()) for k in _count("", [])}},
    }


def _row(scores: LabelScores | None) -> list[float]:
    found = [getattr(scores, metric, None) for metric in METRICS]
    return [np.nan if value is None else value for value in found]


def _mean(values: Values, axis: int) -> Values:
    """Mean of the present values, ``nan`` and no warning where there is none."""
    number = np.isfinite(values).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    mean: Values = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return mean


def _by_metric(columns: Values, statistic: Callable[[Values], T]) -> dict[str, T]:
    """A statistic of the present values of each column of (cases, metrics)."""
    return {m: statistic(column[np.isfinite(column)]) for m, column in zip(METRICS, columns.T, strict=True)}


def _mean_value(values: Values) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(values: Values) -> list[float] | None:
    interval = bootstrap_interval(values) if len(values) else None
    return None if interval is None else list(interval)


def _count(label: str, cases: Iterable[CaseScores]) -> dict[str, int]:
    annotated = [case[label] for case in cases if label in case]
    scored = [scores for scores in annotated if scores is not None]
    return {
        "scored": len(scored),
        "absent_in_both": len(annotated) - len(scored),
        "infinite_distances": sum(s.hd95_mm is None for s in scored),
    }
