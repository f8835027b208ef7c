"""What a comparison says that pretraining saves."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from misfm.evaluation.arms import Arm, mean_curve
from misfm.report.comparison import as_markdown, compare_budgets, curve_table, savings
from misfm.report.figures import learning_curves
from misfm.report.markdown import markdown_table

CURVE = [(100, 0.5), (200, 0.6), (300, 0.7)]


def arm(name: str, dice: float, curve: list[tuple[int, float]], seed: int = 0) -> Arm:
    cases = {case: {"liver": dice + offset} for case, offset in (("a", -0.01), ("b", 0.01))}
    return Arm(name, curve, cases, seed)


def test_five_labels_after_pretraining_are_told_in_labels_and_steps_of_scratch():
    sooner = [(step, dice + 0.1) for step, dice in CURVE]
    budgets = compare_budgets(
        {
            ("unet", 5): [arm("scratch", 0.6, CURVE), arm("mae", 0.65, sooner)],
            ("unet", 20): [arm("scratch", 0.7, CURVE), arm("mae", 0.75, CURVE[:2])],
        }
    )
    five, twenty = savings(budgets)
    assert (five.labels, round(five.worth), round(five.steps), five.scratch_steps) == (5, 10, 200, 300)
    assert (twenty.worth, twenty.steps) == (None, None)
    table = as_markdown(budgets, {})
    assert (
        "| unet | mae | 5 | 0.600 | 0.650 | +0.050 [+0.050, +0.050] | 10.0 labels | 200, scratch 300 |"
        in table
    )
    assert "| outside the budgets | never, scratch 300 |" in table


def test_the_mean_curve_is_over_the_same_runs_everywhere_in_picture_and_table():
    """One report once gave 0.40 and 0.45 for the same step, where one of two runs had ended."""
    runs = [
        arm("mae", 0.5, [(100, 0.3), (200, 0.4), (300, 0.5)]),
        arm("mae", 0.5, [(100, 0.4), (300, 0.5)], 1),
    ]
    assert mean_curve(runs, "mae") == [(100, pytest.approx(0.35)), (200, pytest.approx(0.425)), (300, 0.5)]
    early = [runs[0], arm("mae", 0.5, [(100, 0.4)], 1)]
    assert mean_curve(early, "mae") == [(100, pytest.approx(0.35))]
    assert curve_table(early) == ["| recipe | 100 |", "|---|---|", "| mae | 0.350 |"]
    assert mean_curve([arm("mae", 0.5, [])], "mae") == []
    with patch("misfm.report.figures.mean_curve", wraps=mean_curve) as asked:
        learning_curves(early)
    assert asked.call_count == 1


def test_cells_of_a_table_are_as_many_as_its_headers_and_keep_their_bars():
    assert markdown_table(("a", 2), [("x|y", 0.5)]) == ["| a | 2 |", "|---|---|", "| x\\|y | 0.5 |"]
    with pytest.raises(ValueError, match="expected 2 cells"):
        markdown_table(("a", "b"), [("x",)])


def test_without_validation_nothing_is_said_about_savings():
    budgets = compare_budgets({("unet", 5): [arm("scratch", 0.6, []), arm("mae", 0.65, [])]})
    assert savings(budgets) == []
    assert "saves" not in as_markdown(budgets, {})


def test_a_recipe_with_fewer_seeds_is_compared_with_its_own_twins():
    later = [(step, dice - 0.1) for step, dice in CURVE]
    runs = [arm("scratch", 0.6, CURVE), arm("scratch", 0.4, later, seed=1), arm("mae", 0.65, CURVE)]
    (saving,) = savings(compare_budgets({("unet", 5): runs}))
    assert round(saving.scratch, 6) == 0.6
    assert round(saving.pretrained - saving.scratch, 6) == round(saving.difference.mean, 6)
    assert saving.steps == saving.scratch_steps == 300
