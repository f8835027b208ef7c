"""Seeds: the same parts give the same draws, any other part gives others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from misfm.seeding import derive_seed, draw_int, draw_uniform, generator_for

parts = st.lists(st.integers(0, 2**62) | st.text(max_size=8), min_size=1, max_size=4)


@given(parts, parts)
def test_seeds_are_equal_only_for_equal_parts(first, second):
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


@given(parts)
def test_a_seed_fits_every_generator(some):
    assert 0 <= derive_seed(*some) < 2**63
    generator_for(*some)


def test_parts_do_not_run_into_each_other():
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)


def test_seeds_are_the_same_in_every_process_and_version():
    # Changing this number changes every run that anyone repeats.
    assert derive_seed(0, "patches", 7) == 5881405458217132180


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator_for(1, "a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_cover_their_inclusive_range():
    generator = generator_for("range")
    assert {draw_int(2, 4, generator) for _ in range(100)} == {2, 3, 4}
    numbers = [draw_uniform(-1.0, 3.0, generator) for _ in range(1000)]
    assert -1 <= min(numbers) < -0.9
    assert 2.9 < max(numbers) < 3
    assert sum(numbers) / 1000 == pytest.approx(1, abs=0.15)


def test_draws_happen_on_the_device_of_the_generator():
    generator = generator_for("device")
    with torch.device("meta"):  # any default device other than the generator's
        assert 2 <= draw_int(2, 4, generator) <= 4
        assert -1 <= draw_uniform(-1.0, 3.0, generator) < 3
