"""What more steps would bring: the rise over the last third, and silence where nothing can be said."""

import pytest

from misfm.evaluation.outlook import outlook


def curve(*dice, every=500):
    return [(every * (place + 1), value) for place, value in enumerate(dice)]


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.60, 0.65, 0.66, 0.70, 0.69, 0.721), "rose by 0.021 over the last third of the steps, some of it"),
        ((0.60, 0.65, 0.66, 0.70, 0.69, 0.704), "rose by 0.004 over the last third of the steps: more would"),
        ((0.60, 0.65, 0.66, 0.70, 0.69, 0.68), "did not rise over the last third of the steps: more would"),
        ((0.60, 0.65, 0.70), "rose by 0.050"),
    ],
)
def test_the_best_of_the_last_third_is_compared_with_the_best_before(dice, said):
    assert outlook(curve(*dice)).startswith(f"Validation Dice {said}")


@pytest.mark.parametrize("dice", [(), (0.5,), (0.5, 0.6)])
def test_few_validations_say_nothing(dice):
    assert outlook(curve(*dice)) is None
