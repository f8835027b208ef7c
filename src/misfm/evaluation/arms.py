"""Comparing arms of an experiment, such as pretrained and from scratch, on the same test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.errors import DataError
from misfm.evaluation.statistics import Interval, PairedDifference, bootstrap_interval, paired_difference
from misfm.files import read_checked_json
from misfm.training.run import RunFolder

SCRATCH, PRETRAINED = "scratch", "pretrained"
"""Names of the arms of twins."""
ALL = "all"


@dataclass(frozen=True)
class Arm:
    """One training run of an experiment; runs of the same name are repetitions with other seeds.

    Attributes:
        name: what distinguishes the arm, e.g. ``"scratch"``.
        curve: (step, mean validation Dice) while training, in order.
        cases: test Dice by case and label; ``None`` where the label is absent in prediction and reference.
        seed: of the run; runs of two arms with the same seed are twins.
    """

    name: str
    curve: Sequence[tuple[int, float]] = ()
    cases: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Mean test Dice of an arm on one label, or on all.

    Attributes:
        mean: over cases and seeds.
        interval: its 95 % bootstrap interval; None with fewer than two cases.
        difference: to the baseline on the same cases and seeds; ``None`` for the baseline itself.
    """

    mean: float
    interval: Interval | None
    difference: PairedDifference | None


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        baseline: name of the arm the others are compared with.
        cases: names of the cases every run was scored on.
        seeds: of the runs, by arm.
        scores: by arm and label; ``"all"`` averages each case over its labels first. What has no value in a
            case of both the arm and the baseline is left out, ``"all"`` too: then nothing can be compared.
    """

    baseline: str
    cases: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, Mapping[str, Score]]


def compare_arms(arms: Sequence[Arm], *, baseline: str | None = None) -> Comparison:
    """Average each arm and compare it with the baseline, paired by case and seed.

    Args:
        arms: runs of at least one arm, scored on the same cases.
        baseline: name of the arm to compare with; by default that of the first run.

    Raises:
        ValueError: no runs, no common case, an unknown baseline, or an arm that shares no seed with it.
    """
    runs: dict[str, dict[int, Arm]] = {}
    for arm in arms:
        runs.setdefault(arm.name, {})[arm.seed] = arm
    baseline = next(iter(runs), "") if baseline is None else baseline
    shared = set.intersection(*(set(arm.cases) for arm in arms)) if arms else set()
    if baseline not in runs or not shared:
        raise ValueError(f"no run of the baseline '{baseline}', or no case that all runs were scored on")
    cases = tuple(sorted(shared))
    labels = dict.fromkeys(label for arm in arms for case in cases for label in arm.cases[case])

    scores: dict[str, dict[str, Score]] = {}
    for name, by_seed in runs.items():
        twins = sorted(by_seed.keys() & runs[baseline].keys())
        if not twins:
            raise ValueError(f"arms '{name}' and '{baseline}' have no seed in common")
        scores[name] = {}
        for label in (*labels, ALL):
            own = _table([by_seed[seed] for seed in sorted(by_seed)], cases, label)
            pair = [_table([runs[arm][seed] for seed in twins], cases, label) for arm in (name, baseline)]
            if np.isfinite(pair[0] - pair[1]).any():
                difference = None if name == baseline else paired_difference(*pair)
                scores[name][label] = Score(float(np.nanmean(own)), bootstrap_interval(own), difference)
    return Comparison(
        baseline, cases, {name: tuple(sorted(by_seed)) for name, by_seed in runs.items()}, scores
    )


def _table(runs: Sequence[Arm], cases: Sequence[str], label: str) -> NDArray[np.float64]:
    """Dice of one label as (cases, runs), ``nan`` where there is none."""
    return np.array([[_dice(run.cases[case], label) for run in runs] for case in cases])


def _dice(scores: Mapping[str, float | None], label: str) -> float:
    values = [v for v in (scores.values() if label == ALL else [scores.get(label)]) if v is not None]
    return float(np.mean(values)) if values else np.nan


def learning_curve(run_dir: Path) -> list[tuple[int, float]]:
    """Return (step, mean validation Dice) of a run."""
    rows = RunFolder(run_dir).read_metrics()
    return [(row["step"], row["validation_dice"]) for row in rows if row.get("validation_dice") is not None]


def mean_curve(arms: Sequence[Arm], name: str) -> list[tuple[int, float]]:
    """Return the mean validation Dice of the runs of an arm, by step.

    The mean is over the same runs at every step: it begins and ends where all of them have been, and between
    two validations a run is taken to be straight. A mean over whichever runs were judged at a step would
    jump where one of them begins or ends.

    Args:
        arms: runs of any arms; those without validation are left out.
        name: of the arm.
    """
    curves = [np.array(arm.curve, dtype=np.float64) for arm in arms if arm.name == name and arm.curve]
    if not curves:
        return []
    start, end = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    mean = np.mean([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    return [(int(step), float(dice)) for step, dice in zip(steps, mean, strict=True)]


def read_scores(path: Path) -> dict[str, Any]:
    """Read what ``misfm evaluate`` found, as a run or an arm keeps it.

    Raises:
        DataError: it is gone, damaged, or holds something else.
    """
    scores = read_checked_json(path)
    try:
        found = [value for row in dice_by_case(scores).values() for value in row.values()]
        if not all(value is None or type(value) in (int, float) for value in found):
            raise TypeError
    except (TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path} holds no scores of cases; delete it and give the command again.") from error
    return dict(scores)


def dice_by_case(scores: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return Dice by case and label of a ``misfm evaluate`` result."""
    return {
        case: {label: None if score is None else score["dice"] for label, score in labels.items()}
        for case, labels in scores["cases"].items()
    }
