"""Which scans to label: a few that stand for all, or that a network is least sure of."""

import numpy as np
import pytest

from misfm.planning.selection import least_sure, representatives, standardise


def groups(*sizes, spread=0.1):
    """Vectors (N, 2) around corners of a square, so many each."""
    generator = np.random.default_rng(0)
    corners = np.array([(0, 0), (0, 9), (9, 0), (9, 9)])
    return np.concatenate([corners[i] + spread * generator.normal(size=(n, 2)) for i, n in enumerate(sizes)])


def test_one_of_each_kind_the_commonest_first():
    picks = representatives(groups(5, 8, 3), 3)
    assert [len(pick.stands_for) for pick in picks] == [8, 5, 3]
    assert [pick.stands_for[0] for pick in picks] == [pick.index for pick in picks]
    assert sorted(i for pick in picks for i in pick.stands_for) == list(range(16))


def test_what_is_labelled_need_not_be_labelled_again():
    vectors = groups(5, 8, 3)
    (pick,) = representatives(vectors[:13], 1, covered=vectors[[8]])  # the commonest kind is there
    assert pick.index < 5
    assert pick.stands_for[0] == pick.index
    assert set(pick.stands_for) == set(range(5))


def test_equal_calls_pick_equal_scans():
    vectors = np.random.default_rng(1).normal(size=(30, 5))
    assert representatives(vectors, 4) == representatives(vectors, 4)


@pytest.mark.parametrize("count", [3, 5])
def test_few_scans_are_all_picked(count):
    assert sorted(pick.index for pick in representatives(groups(1, 1, 1), count)) == [0, 1, 2]


def test_scans_that_are_all_alike_are_picked_once_each():
    picks = representatives(np.zeros((6, 2)), 3)
    assert len({pick.index for pick in picks}) == 3


def test_the_least_sure_that_differ():
    vectors = groups(10, 10, 10)
    quality = [0.9] * 10 + [0.5] * 10 + [0.6] * 10
    quality[12], quality[25] = 0.4, 0.45
    picks = least_sure(vectors, quality, 2, pool=8)
    assert [quality[pick.index] for pick in picks] == sorted(quality[pick.index] for pick in picks)
    assert {pick.index // 10 for pick in picks} == {1, 2}


def test_features_weigh_the_same_whatever_their_unit():
    features = np.array([[1000.0, 0.1, 7], [2000.0, 0.3, 7], [3000.0, 0.2, 7]])
    scaled = standardise(features)
    assert scaled[:, :2].std(axis=0) == pytest.approx([1, 1])
    assert not scaled[:, 2].any()
