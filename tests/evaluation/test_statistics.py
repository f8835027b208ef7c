import numpy as np
import pytest

from misfm.evaluation.statistics import bootstrap_interval, holm, paired_difference, sign_flip_p_value


def test_the_interval_of_a_mean_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)


def test_the_interval_matches_resampling_by_hand():
    values = np.array([0.1, 0.5, 0.6, 0.9])
    generator = np.random.default_rng(1)
    means = [generator.choice(values, 4).mean() for _ in range(10_000)]
    assert bootstrap_interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)


def test_equal_seeds_give_equal_intervals_and_constants_none():
    values = np.random.default_rng(0).random(10)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval([0.4] * 5) == pytest.approx((0.4, 0.4))


def test_missing_values_are_left_out():
    assert bootstrap_interval([0.2, np.nan, 0.2]) == pytest.approx((0.2, 0.2))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([np.nan])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([])


def test_a_single_case_has_no_interval():
    assert bootstrap_interval([0.4]) is None
    assert bootstrap_interval([[0.4, 0.6], [np.nan, np.nan]]) is None
    result = paired_difference([[0.5, 0.7]], [[0.4, 0.4]])
    assert (result.mean, result.interval, result.cases) == (pytest.approx(0.2), None, 1)
    assert str(result) == "+0.200 on a single case"
    assert str(paired_difference([0.5, 0.6], [0.4, 0.5])) == "+0.100, 95 % interval +0.100 to +0.100"


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(0, 1, 40), resamples=400)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_seeds_that_disagree_widen_the_interval():
    """Equal means per case, but the gain depends on the training run: cases alone would hide that."""
    agree = np.full((20, 3), 0.05)
    disagree = agree + np.array([-0.2, 0.0, 0.2])
    narrow = paired_difference(agree, np.zeros((20, 3))).interval
    wide = paired_difference(disagree, np.zeros((20, 3))).interval
    assert narrow == pytest.approx((0.05, 0.05))
    assert wide.low < -0.1
    assert wide.high > 0.2


def test_pairing_removes_what_the_cases_have_in_common():
    hardness = np.random.default_rng(0).random(24)
    result = paired_difference(hardness + 0.05, hardness)
    assert result.mean == pytest.approx(0.05)
    assert result.interval == pytest.approx((0.05, 0.05))
    assert result.cases_ahead == result.cases == 24
    assert result.p_value < 0.001


def test_swapping_the_arms_mirrors_the_result():
    a, b = np.random.default_rng(0).random((2, 8, 3))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.mean == pytest.approx(-back.mean)
    assert forth.interval == pytest.approx((-back.interval.high, -back.interval.low))
    assert forth.p_value == back.p_value


def test_cases_without_a_pair_are_dropped():
    result = paired_difference([0.5, np.nan, 0.7], [0.4, 0.9, 0.6])
    assert result.cases == 2
    assert result.mean == pytest.approx(0.1)
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference([1.0], [1.0, 2.0])


def test_sign_flip_p_values_by_hand():
    assert sign_flip_p_value([1.0, 1.0, 1.0]) == 2 / 8  # only +++ and --- are as extreme
    assert sign_flip_p_value([1.0, 2.0, -3.0]) == 1
    assert sign_flip_p_value([0.1] * 5) == 2 / 32
    assert sign_flip_p_value(np.full(30, 0.3)) == pytest.approx(1 / 10_001)


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert corrected == pytest.approx({"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.9})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0}
