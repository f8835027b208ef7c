"""What a comparison says that pretraining saves."""

from __future__ import annotations

from misfm.evaluation.arms import Arm
from misfm.report.comparison import as_markdown, compare_budgets, savings

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
