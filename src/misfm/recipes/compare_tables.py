"""Tables, pictures and JSON of a comparison: one block for each network and label budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from misfm.evaluation.arms import ALL, Arm, Comparison, compare_arms
from misfm.evaluation.statistics import holm
from misfm.recipes.twins import SCRATCH
from misfm.report.figures import dice_by_labels, learning_curves
from misfm.report.html import Picture, ReportData, Table
from misfm.report.twins import verdicts

HEADERS = ("recipe", "seeds", "mean Dice [95 %]", "difference to scratch [95 %]", "p (Holm)", "cases ahead")


@dataclass(frozen=True)
class Budget:
    """Everything about one network at one number of labels.

    Attributes:
        network: registered name.
        labels: labelled training cases.
        arms: finished runs.
        comparison: of the arms with scratch.
        p_values: by recipe, corrected for the number of recipes (Holm 1979).
    """

    network: str
    labels: int
    arms: Sequence[Arm]
    comparison: Comparison
    p_values: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """All numbers, with those of each run."""
        return {
            "network": self.network,
            "labels": self.labels,
            "comparison": asdict(self.comparison),
            "p_values_holm": dict(self.p_values),
            "runs": [
                {"recipe": arm.name, "seed": arm.seed, "curve": list(arm.curve), "test": dict(arm.cases)}
                for arm in self.arms
            ],
        }


def compare_budgets(arms: Mapping[tuple[str, int], Sequence[Arm]]) -> list[Budget]:
    """Compare the arms of each network and budget, where scratch and at least one case are there."""
    budgets = []
    for (network, labels), runs in arms.items():
        seeds = {arm.seed for arm in runs if arm.name == SCRATCH}
        paired = [arm for arm in runs if arm.seed in seeds]
        if not paired or not all(arm.cases for arm in paired):
            continue
        comparison = compare_arms(paired, baseline=SCRATCH)
        differences = {
            name: scores[ALL].difference for name, scores in comparison.scores.items() if ALL in scores
        }
        raw = {name: one.p_value for name, one in differences.items() if one is not None}
        budgets.append(Budget(network, labels, paired, comparison, holm(raw)))
    return budgets


def rows(budget: Budget) -> list[tuple[str, ...]]:
    """One row an arm, scratch first."""
    lines: list[tuple[str, ...]] = []
    for name, scores in budget.comparison.scores.items():
        score = scores.get(ALL)
        if score is None:
            continue
        mean = f"{score.mean:.3f}"
        if score.interval is not None:
            mean += f" [{score.interval.low:.3f}, {score.interval.high:.3f}]"
        seeds, one = str(len(budget.comparison.seeds[name])), score.difference
        if one is None:
            lines.append((name, seeds, mean, "", "", ""))
            continue
        gap = f"{one.mean:+.3f}"
        if one.interval is not None:
            gap += f" [{one.interval.low:+.3f}, {one.interval.high:+.3f}]"
        ahead = f"{one.cases_ahead} of {one.cases}"
        lines.append((name, seeds, mean, gap, f"{budget.p_values[name]:.3f}", ahead))
    return lines


def as_markdown(budgets: Sequence[Budget], failed: Mapping[str, str | None]) -> str:
    """One table for each network and budget, then the curves, then what failed."""
    lines: list[str] = []
    for budget in budgets:
        lines += [f"### {budget.network}, {budget.labels} labels", "", f"| {' | '.join(HEADERS)} |"]
        lines.append("|" + "---|" * len(HEADERS))
        lines += [f"| {' | '.join(row)} |" for row in rows(budget)]
        lines += ["", "Mean validation Dice while training:", "", *curve_table(budget.arms), ""]
    lines += [f"Failed: {name}: {reason}" for name, reason in failed.items()]
    return "\n".join(lines) + "\n"


def curve_table(arms: Sequence[Arm]) -> list[str]:
    """Markdown of the mean curve of each arm."""
    steps = sorted({step for arm in arms for step, _ in arm.curve})
    lines = [f"| recipe | {' | '.join(map(str, steps))} |", "|" + "---|" * (len(steps) + 1)]
    for name in dict.fromkeys(arm.name for arm in arms):
        curves = [dict(arm.curve) for arm in arms if arm.name == name]
        known = [[curve[step] for curve in curves if step in curve] for step in steps]
        cells = [f"{sum(values) / len(values):.3f}" if values else "" for values in known]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def compare_report(budgets: Sequence[Budget], failed: Mapping[str, str | None]) -> ReportData:
    """Lay the comparison out as a page."""
    figures = []
    for network in dict.fromkeys(budget.network for budget in budgets):
        own = [budget for budget in budgets if budget.network == network]
        caption = f"{network}: mean test Dice against the number of labels, with 95 % intervals."
        points = {budget.labels: budget.comparison for budget in own}
        figures.append(Picture(caption, dice_by_labels(points), wide=True))
        for budget in own:
            caption = f"{network}, {budget.labels} labels: validation Dice while training."
            figures.append(Picture(caption, learning_curves(budget.arms)))
    tables = [
        Table(f"{budget.network}, {budget.labels} labels", HEADERS, tuple(rows(budget))) for budget in budgets
    ]
    return ReportData(
        title="Pretext tasks compared",
        verdicts=tuple(verdict for budget in budgets for verdict in verdicts(budget.comparison)),
        figures=tuple(figures),
        tables=tuple(tables),
        notes=(
            "All arms share data, steps, schedule and order of patches; each recipe was pretrained once.",
            "p-values flip signs of the cases' differences and are corrected for the number of recipes.",
            *(f"Failed: {name}: {reason}" for name, reason in failed.items()),
        ),
    )
