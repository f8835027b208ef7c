"""Exact percentiles against numpy's, on the distributions that break shortcuts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from misfm.augment.percentiles import Tails, percentile_pair, spread
from misfm.seeding import generator_for

PAIRS = [(0.1, 99.9), (2.0, 98.0), (0.0, 100.0), (1.234, 98.765), (40.0, 60.0), (0.1, 0.1)]


def as_numpy(x, percents):
    return tuple(np.percentile(x.numpy().astype(np.float64), percents).tolist())


def volume(kind):
    generator = generator_for(kind)
    noise = torch.randn(20, 31, 37, generator=generator)
    return {
        "normal": noise,
        "offset": 1000 + noise,
        "long tails": noise.pow(5),
        "air": noise.clamp(min=-0.3),
        "clipped at both ends": noise.clamp(-0.5, 0.5),
        "integers": (20 * noise).round(),
        "two values": (noise > 2.2).float(),
        "constant": torch.full_like(noise, 0.1),
        "all but one constant": torch.zeros_like(noise).index_fill_(0, torch.tensor([3]), 1.0),
        "sorted": noise.flatten().sort().values,
        "periodic in step with the sample": torch.arange(61 * 400) % 61 * 1.0,
        "extremes unseen by the sample": torch.where(torch.arange(61 * 400) % 61 == 0, 0.0, 9.0)
        + torch.rand(61 * 400, generator=generator),
        "doubles": noise.double(),
        "strided": noise.transpose(0, 2)[:, ::2],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "offset",
        "long tails",
        "air",
        "clipped at both ends",
        "integers",
        "two values",
        "constant",
        "all but one constant",
        "sorted",
        "periodic in step with the sample",
        "extremes unseen by the sample",
        "doubles",
        "strided",
    ],
)
def test_large_arrays_agree_with_numpy_to_the_last_bit(kind):
    x = volume(kind)
    before = x.clone()
    for percents in PAIRS:
        assert percentile_pair(x, percents) == as_numpy(x, percents)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["normal", "air", "clipped at both ends", "constant", "doubles", "strided"])
def test_the_extremes_come_along_and_sorting_finds_the_same(kind, monkeypatch):
    x = volume(kind)
    for percents in PAIRS:
        low, high = as_numpy(x, percents)
        points = spread(x, percents)
        assert points.tolist() == [float(x.min()), low, high, float(x.max())]
        with monkeypatch.context() as patch:
            patch.setattr("misfm.augment.percentiles.ON_CPU", ())
            assert torch.allclose(spread(x, percents).double(), points, rtol=1e-6)


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 300),
        elements=st.one_of(
            st.sampled_from([0.0, -1.0, 0.5]),
            st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
        ),
    ),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted),
    st.integers(1, 70),
)
@settings(max_examples=200, deadline=None)
def test_small_and_tied_arrays_agree_with_numpy_at_any_stride(values, percents, stride):
    x = torch.from_numpy(values)
    assert percentile_pair(x, tuple(percents), stride) == as_numpy(x, percents)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_rank_is_found_wherever_the_cuts_are(numbers, first, second):
    tails = Tails.cut(np.array(numbers, dtype=np.float32), min(first, second), max(first, second))
    assert [tails.at(rank) for rank in range(len(numbers))] == sorted(numbers)
