"""What the contract of networks gives all of them: strides, depths, demands."""

import pytest

from misfm.models.base import NETWORKS, UNKNOWN_DEMAND, Demand, Networks, depths_by_name, total_strides


def test_depths_follow_the_numbers_in_names():
    names = ["pos_embed", "stem.conv.weight", "blocks.0.mlp.1.weight", "blocks.1.norm.weight", "norm.weight"]
    assert list(depths_by_name(names).values()) == [0, 0, 1, 2, 2]
    assert depths_by_name(["weight"]) == {"weight": 0}


def test_strides_multiply_along_each_axis():
    assert total_strides([(1, 2, 2), (2, 2, 3)]) == ((1, 1, 1), (1, 2, 2), (2, 4, 6))
    assert total_strides([]) == ((1, 1, 1),)


def test_demands_are_known_without_building():
    networks = Networks()
    networks.register("one", "two", demand=Demand(5, multiple=2))(lambda **_: pytest.fail("was built"))
    networks.register("three")(lambda **_: pytest.fail("was built"))
    assert networks.demand("one") == networks.demand("two") == Demand(5, 2)
    assert networks.demand("three") == networks.demand("four") == UNKNOWN_DEMAND


def test_the_most_is_asked_for_what_was_not_measured():
    assert all(NETWORKS.demand(name).saved <= UNKNOWN_DEMAND.saved for name in NETWORKS.names())
