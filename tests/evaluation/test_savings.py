"""How many labels and steps of training from scratch a Dice is worth."""

from __future__ import annotations

import pytest

from misfm.evaluation.savings import labels_worth, steps_to_reach

SCRATCH = {1: 0.4, 5: 0.6, 20: 0.7}


@pytest.mark.parametrize(("dice", "labels"), [(0.4, 1), (0.6, 5), (0.65, 10), (0.7, 20)])
def test_a_dice_between_two_budgets_is_worth_labels_between_theirs(dice: float, labels: float) -> None:
    assert labels_worth(SCRATCH, dice) == pytest.approx(labels)


@pytest.mark.parametrize("dice", [0.39, 0.71])
def test_beyond_the_budgets_nothing_is_extrapolated(dice: float) -> None:
    assert labels_worth(SCRATCH, dice) is None


def test_one_budget_tells_of_its_own_dice_only() -> None:
    assert labels_worth({5: 0.6}, 0.6) == 5
    assert labels_worth({5: 0.6}, 0.61) is None
    assert labels_worth({}, 0.6) is None


def test_less_than_scratch_has_with_the_fewest_labels_is_worth_nothing_though_more_labels_did_worse() -> None:
    assert labels_worth({5: 0.6, 10: 0.5, 20: 0.7}, 0.55) is None


def test_after_a_dip_it_counts_when_scratch_gets_there_for_the_first_time() -> None:
    assert labels_worth({5: 0.6, 10: 0.5, 20: 0.7}, 0.65) == pytest.approx(10 * 2**0.75)


def test_a_flat_stretch_counts_as_its_fewest_labels() -> None:
    assert labels_worth({5: 0.6, 10: 0.6, 20: 0.7}, 0.6) == 5


def test_steps_are_read_between_two_validations() -> None:
    curve = [(100, 0.2), (200, 0.6), (300, 0.5), (400, 0.7)]
    assert steps_to_reach(curve, 0.4) == pytest.approx(150)
    assert steps_to_reach(curve, 0.65) == pytest.approx(375)


def test_a_dice_passed_before_the_first_validation_counts_as_reached_there() -> None:
    assert steps_to_reach([(100, 0.2), (200, 0.6)], 0.1) == 100


def test_a_dice_that_is_never_reached_has_no_steps() -> None:
    assert steps_to_reach([(100, 0.2), (200, 0.6)], 0.61) is None
    assert steps_to_reach([], 0.1) is None
