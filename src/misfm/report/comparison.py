"""Tables, pictures and JSON of a comparison: one block for each network and label budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from misfm.evaluation.arms import ALL, SCRATCH, Arm, Comparison, compare_arms, mean_curve
from misfm.evaluation.savings import labels_worth, steps_to_reach
from misfm.evaluation.statistics import PairedDifference, holm
from misfm.report.figures import dice_by_labels, learning_curves
from misfm.report.html import Picture, ReportData, Table
from misfm.report.markdown import markdown_table
from misfm.report.twins import verdicts

HEADERS = ("recipe", "seeds", "mean Dice [95 %]", "difference to scratch [95 %]", "p (Holm)", "cases ahead")
SAVINGS = "What pretraining saves"
SAVING_HEADERS = (
    *("network", "recipe", "labels", "scratch", "pretrained", "difference [95 %]"),
    *("worth of scratch", "steps to scratch's last validation Dice"),
)


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


@dataclass(frozen=True)
class Saving:
    """What a recipe saves at one budget.

    Attributes:
        network: registered name.
        recipe: what was pretrained.
        labels: labelled training cases.
        scratch, pretrained: mean test Dice.
        difference: between them, paired.
        worth: labels with which scratch reaches the same test Dice, as far as the budgets can tell.
        steps: after which its mean validation Dice is for the first time what that of scratch is at the end;
            None if never.
        scratch_steps: after which that of scratch is.
    """

    network: str
    recipe: str
    labels: int
    scratch: float
    pretrained: float
    difference: PairedDifference | None
    worth: float | None
    steps: float | None
    scratch_steps: float

    def row(self) -> tuple[str, ...]:
        """As the table has it."""
        worth = "outside the budgets" if self.worth is None else f"{self.worth:.1f} labels"
        reached = "never" if self.steps is None else f"{self.steps:.0f}"
        steps = f"{reached}, scratch {self.scratch_steps:.0f}"
        dice = (f"{self.scratch:.3f}", f"{self.pretrained:.3f}", gap_text(self.difference))
        return self.network, self.recipe, str(self.labels), *dice, worth, steps


def savings(budgets: Sequence[Budget]) -> list[Saving]:
    """Return what each recipe saves at each budget; nothing without validation while training."""
    found = []
    for budget in budgets:
        scratch = {
            other.labels: other.comparison.scores[SCRATCH][ALL].mean
            for other in budgets
            if other.network == budget.network and ALL in other.comparison.scores[SCRATCH]
        }
        for recipe, scores in budget.comparison.scores.items():
            if recipe != SCRATCH and ALL in scores:
                found.append(saving_of(budget, recipe, scratch))
    return [saving for saving in found if saving is not None]


def saving_of(budget: Budget, recipe: str, scratch: Mapping[int, float]) -> Saving | None:
    """Compare a recipe with its twins from scratch, those of the same seeds.

    Args:
        budget: with runs of both.
        recipe: what was pretrained.
        scratch: mean test Dice by number of labels.

    Returns:
        What it saves; None without validation while training.
    """
    seeds = budget.comparison.seeds[recipe]
    twins = [arm for arm in budget.arms if arm.name in (SCRATCH, recipe) and arm.seed in seeds]
    curve = mean_curve(twins, SCRATCH)
    reached = steps_to_reach(curve, curve[-1][1]) if curve else None
    if reached is None:
        return None
    scores = compare_arms(twins, baseline=SCRATCH).scores
    return Saving(
        network=budget.network,
        recipe=recipe,
        labels=budget.labels,
        scratch=scores[SCRATCH][ALL].mean,
        pretrained=scores[recipe][ALL].mean,
        difference=scores[recipe][ALL].difference,
        worth=labels_worth(scratch, scores[recipe][ALL].mean),
        steps=steps_to_reach(mean_curve(twins, recipe), curve[-1][1]),
        scratch_steps=reached,
    )


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
        gap = gap_text(one)
        ahead = f"{one.cases_ahead} of {one.cases}"
        lines.append((name, seeds, mean, gap, f"{budget.p_values[name]:.3f}", ahead))
    return lines


def gap_text(difference: PairedDifference | None) -> str:
    """A paired difference with its interval, as tables have it."""
    if difference is None:
        return ""
    interval = difference.interval
    brackets = "" if interval is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{difference.mean:+.3f}{brackets}"


def as_markdown(budgets: Sequence[Budget], failed: Mapping[str, str | None]) -> str:
    """One table for each network and budget, then the curves, then what failed."""
    lines: list[str] = []
    for budget in budgets:
        lines += [f"### {budget.network}, {budget.labels} labels", ""]
        lines += markdown_table(HEADERS, rows(budget))
        lines += ["", "Mean validation Dice while training:", "", *curve_table(budget.arms), ""]
    saved = savings(budgets)
    if saved:
        table = markdown_table(SAVING_HEADERS, [saving.row() for saving in saved])
        lines += [f"### {SAVINGS}", "", *table, ""]
    lines += [f"Failed: {name}: {reason}" for name, reason in failed.items()]
    return "\n".join(lines) + "\n"


def curve_table(arms: Sequence[Arm]) -> list[str]:
    """Markdown of the mean curve of each arm."""
    curves = {name: dict(mean_curve(arms, name)) for name in dict.fromkeys(arm.name for arm in arms)}
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [
        (name, *(f"{curve[step]:.3f}" if step in curve else "" for step in steps))
        for name, curve in curves.items()
    ]
    return markdown_table(("recipe", *steps), rows)


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
    saved = savings(budgets)
    if saved:
        tables.append(Table(SAVINGS, SAVING_HEADERS, tuple(saving.row() for saving in saved)))
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
