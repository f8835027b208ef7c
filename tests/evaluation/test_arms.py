import json
from dataclasses import asdict

import pytest

from misfm.evaluation.arms import Arm, compare_arms


def run(name: str, dice: dict[str, dict[str, float | None]], seed: int = 0) -> Arm:
    return Arm(name, cases=dice, seed=seed)


def test_arms_are_compared_on_the_same_cases_and_seeds():
    scratch = run("scratch", {"a": {"liver": 0.5, "lung": 0.7}, "b": {"liver": 0.6, "lung": 0.8}})
    pretrained = run("pretrained", {"a": {"liver": 0.6, "lung": 0.7}, "b": {"liver": 0.8, "lung": 0.8}})
    result = compare_arms([scratch, pretrained])
    assert result.baseline == "scratch"
    assert result.cases == ("a", "b")
    assert result.scores["scratch"]["all"].mean == pytest.approx(0.65)
    assert result.scores["scratch"]["all"].difference is None
    gain = result.scores["pretrained"]
    assert gain["liver"].difference.mean == pytest.approx(0.15)
    assert gain["lung"].difference.mean == pytest.approx(0)
    assert gain["all"].difference.cases_ahead == 2
    json.dumps(asdict(result))


def test_runs_of_one_name_are_seeds_and_pair_with_their_twins():
    runs = [
        run(name, {"a": {"x": base + 0.1 * seed}, "b": {"x": base + 0.1 * seed}}, seed)
        for name, base, seeds in (("scratch", 0.3, (0, 1, 2)), ("pretrained", 0.4, (1, 2)))
        for seed in seeds
    ]
    result = compare_arms(runs)
    assert result.seeds == {"scratch": (0, 1, 2), "pretrained": (1, 2)}
    assert result.scores["scratch"]["x"].mean == pytest.approx(0.4)
    difference = result.scores["pretrained"]["x"].difference
    assert (difference.mean, difference.seeds) == (pytest.approx(0.1), 2)


def test_labels_absent_from_a_case_are_left_out():
    arms = [run(n, {"a": {"x": 0.5, "y": None}, "b": {"x": 0.7, "y": None}}) for n in ("s", "p")]
    scores = compare_arms(arms).scores["p"]
    assert set(scores) == {"x", "all"}
    assert scores["all"].mean == pytest.approx(0.6)


def test_without_any_label_there_is_no_score():
    arms = [run(n, {"a": {"x": None}, "b": {"x": None}}) for n in ("s", "p")]
    assert compare_arms(arms).scores == {"s": {}, "p": {}}
    # The other arm made something up, which the baseline has nothing to set against.
    assert compare_arms([arms[0], run("p", {"a": {"x": 0.0}, "b": {"x": None}})]).scores["p"] == {}


def test_a_single_case_has_means_but_no_intervals():
    scores = compare_arms([run("s", {"a": {"x": 0.5}}), run("p", {"a": {"x": 0.6}})]).scores["p"]
    assert scores["all"].mean == 0.6
    assert scores["all"].interval is None
    assert scores["all"].difference.interval is None


def test_only_cases_of_every_run_count_and_nothing_in_common_is_an_error():
    arms = [run("s", {"a": {"x": 0.5}, "b": {"x": 0.1}}), run("p", {"a": {"x": 0.5}})]
    assert compare_arms(arms).cases == ("a",)
    with pytest.raises(ValueError, match="no case"):
        compare_arms([run("s", {"a": {"x": 0.5}}), run("p", {"b": {"x": 0.5}})])
    with pytest.raises(ValueError, match="no seed in common"):
        compare_arms([run("s", {"a": {"x": 0.5}}, 0), run("p", {"a": {"x": 0.5}}, 1)])
    with pytest.raises(ValueError, match="baseline 'q'"):
        compare_arms(arms, baseline="q")
