"""The report on arms that differ in one thing, such as the weights they start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from misfm.evaluation.arms import ALL, Arm, Comparison, Score, compare_arms
from misfm.evaluation.statistics import Interval, PairedDifference
from misfm.report.figures import difference_plot, learning_curves
from misfm.report.html import Picture, ReportData, Table, Verdict

NOTHING_TO_COMPARE = Verdict(
    "Nothing to compare", "No label occurs in a prediction or a reference of the cases that all arms share."
)
_FEW_CASES = 10
_NOTHING = "–"


def twin_report(
    title: str,
    arms: Sequence[Arm],
    *,
    scored: str = "test",
    figures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> ReportData:
    """Lay out a comparison: verdict, learning curves, differences, tables, and what to keep in mind.

    Args:
        title: of the page.
        arms: runs; the name of the first is the baseline, runs of one name are seeds of one arm.
        scored: which cases the scores are of, "test" or "validation".
        figures: further pictures, shown behind the curves.
        notes: caveats, put before those that follow from the numbers of cases and seeds.
        settings: settings and versions, name to value.

    Raises:
        ValueError: the arms share no case or no seed; see `compare_arms`.
    """
    comparison = compare_arms(arms)
    drawn, tables = [], [label_table(comparison, scored)] if is_comparable(comparison) else []
    if any(arm.curve for arm in arms):
        drawn.append(
            Picture(
                "Validation Dice while training; thin lines are single seeds, thick ones their mean.",
                learning_curves(arms),
            )
        )
    if len(comparison.scores) > 1 and is_comparable(comparison):
        drawn.append(
            Picture(
                f"Dice minus that of {comparison.baseline} on the same {scored} cases, with 95 % intervals.",
                difference_plot(comparison),
            )
        )
        tables.append(difference_table(comparison))
    return ReportData(
        title=title,
        verdicts=tuple(verdicts(comparison)),
        figures=(*drawn, *figures),
        tables=(*tables, case_table(arms, comparison, scored)),
        notes=(*notes, *_caveats(comparison)),
        settings=settings or {},
    )


def is_comparable(comparison: Comparison) -> bool:
    """Whether the baseline has a score at all: where labels are absent everywhere, it has none."""
    return ALL in comparison.scores[comparison.baseline]


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Say of every arm whether it is ahead of the baseline."""
    if not is_comparable(comparison):
        return [NOTHING_TO_COMPARE]
    base = comparison.scores[comparison.baseline][ALL]
    lines = []
    for name, scores in comparison.scores.items():
        difference = scores[ALL].difference if ALL in scores else None
        if difference is None:
            continue
        lines.append(
            Verdict(
                f"{name} {scores[ALL].mean:.3f} vs {comparison.baseline} {base.mean:.3f}, "
                f"difference {_signed(difference)}",
                f"{_judgement(difference)}: better on {difference.cases_ahead} of {difference.cases} cases, "
                f"{_p_value(difference)}.",
                _tone(difference),
            )
        )
    return lines or [Verdict(f"{comparison.baseline}: mean Dice {_with_interval(base)}")]


def label_table(comparison: Comparison, scored: str) -> Table:
    """Mean Dice of each label and of all, one column an arm; ``scored`` says on which cases."""
    rows = [
        (label, *(_with_interval(score) if score else _NOTHING for score in scores))
        for label, scores in _by_label(comparison, list(comparison.scores))
    ]
    caption = f"Mean Dice of the {scored} cases by label, with 95 % bootstrap intervals."
    return Table(caption, ("label", *comparison.scores), tuple(rows))


def difference_table(comparison: Comparison) -> Table:
    """Paired differences to the baseline by label, one column for each other arm."""
    others = [name for name in comparison.scores if name != comparison.baseline]
    rows = [
        (label, *(_signed(score.difference) if score and score.difference else _NOTHING for score in scores))
        for label, scores in _by_label(comparison, others)
    ]
    caption = (
        f"Difference to {comparison.baseline} on the same cases and seeds, with 95 % bootstrap intervals."
    )
    return Table(caption, ("label", *others), tuple(rows))


def case_table(arms: Sequence[Arm], comparison: Comparison, scored: str) -> Table:
    """Dice of each case averaged over its labels, one column a run."""
    several = len(arms) > len(comparison.scores)
    headers = [f"{arm.name}, seed {arm.seed}" if several else arm.name for arm in arms]
    rows = []
    for case in comparison.cases:
        values = [[v for v in arm.cases[case].values() if v is not None] for arm in arms]
        rows.append((case, *(f"{sum(v) / len(v):.3f}" if v else _NOTHING for v in values)))
    return Table(
        f"Dice of every {scored} case, mean over its labels.", ("case", *headers), tuple(rows), folded=True
    )


def _by_label(comparison: Comparison, names: Sequence[str]) -> list[tuple[str, list[Score | None]]]:
    labels = dict.fromkeys(label for scores in comparison.scores.values() for label in scores)
    return [(label, [comparison.scores[name].get(label) for name in names]) for label in labels]


def _caveats(comparison: Comparison) -> list[str]:
    seeds = min(len(seeds) for seeds in comparison.seeds.values())
    cases = len(comparison.cases)
    notes = []
    if len(comparison.scores) > 1:
        notes.append(
            "Intervals resample cases, and seeds where there are several; p-values flip signs of the cases' "
            "differences. Intervals of single labels are not corrected for their number."
        )
    if seeds == 1 and len(comparison.scores) > 1:
        notes.append(
            "Each arm was trained with one seed: the intervals say how much other patients would change the "
            "result, not how much another training run would, which may be more."
        )
    if cases < 2:
        notes.append("One test case tells nothing about others, so there are no intervals.")
    elif cases < _FEW_CASES:
        notes.append(f"With {cases} test cases the intervals are rough and tend to be too narrow.")
    return notes


def _tone(difference: PairedDifference) -> Literal["ahead", "behind", "level"]:
    if difference.interval is None:
        return "level"
    if difference.interval.low > 0:
        return "ahead"
    return "behind" if difference.interval.high < 0 else "level"


def _judgement(difference: PairedDifference) -> str:
    if difference.interval is None:
        return "Too few cases to judge"
    return {"ahead": "Ahead", "behind": "Behind", "level": "No clear difference"}[_tone(difference)]


def _signed(difference: PairedDifference) -> str:
    return f"{difference.mean:+.3f}{_brackets(difference.interval, '+.3f')}"


def _with_interval(score: Score) -> str:
    return f"{score.mean:.3f}{_brackets(score.interval, '.3f')}"


def _brackets(interval: Interval | None, form: str) -> str:
    return f"\u00a0[{interval.low:{form}},\u00a0{interval.high:{form}}]" if interval else ""


def _p_value(difference: PairedDifference) -> str:
    return f"p\u00a0=\u00a0{difference.p_value:.3f}" if difference.p_value >= 0.001 else "p\u00a0<\u00a00.001"
