"""Schedules: pure functions of the step, at points worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from misfm.training.schedules import SCHEDULES, LearningRateScale, ScheduleSettings, learning_rate_scale


def scales(steps, **settings):
    return [learning_rate_scale(step, steps, ScheduleSettings(**settings)) for step in range(steps)]


def encoder(steps, **settings):
    return [scale.encoder for scale in scales(steps, **settings)]


def decoder(steps, **settings):
    return [scale.decoder for scale in scales(steps, **settings)]


def test_constant_stays_at_the_peak():
    assert decoder(3, name="constant") == [1, 1, 1]


def test_poly_falls_to_nothing_at_the_end():
    assert decoder(4, name="poly", power=1) == [1, 0.75, 0.5, 0.25]
    assert decoder(4, name="poly", power=2) == [1, 0.5625, 0.25, 0.0625]
    assert decoder(1000, name="poly")[500] == pytest.approx(0.5**0.9)


def test_warmup_rises_to_the_peak_then_falls_over_what_remains():
    expected = [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    assert decoder(8, name="warmup", warmup=0.5, power=1) == expected


def test_halving_halves_after_equal_shares():
    expected = [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    assert decoder(10, name="halving", halve_every=0.2) == expected
    # MIS-FM: 1e-3, halved every 20k of 100k steps.
    mis_fm = ScheduleSettings(name="halving", halve_every=0.2)
    points = [learning_rate_scale(step, 100_000, mis_fm).encoder for step in (0, 19_999, 20_000, 99_999)]
    assert points == [1, 1, 0.5, 1 / 16]


def test_sawtooth_warms_the_decoder_up_alone_then_everything():
    # Ten steps of warm-up: five up and five down for the decoder, ten up for all, twenty down for all.
    found = scales(40, name="sawtooth", warmup=0.25, power=1)
    frozen, rising, falling = found[:10], found[10:20], found[20:]
    assert [scale.encoder for scale in frozen] == [0] * 10
    assert [scale.decoder for scale in frozen] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )
    assert rising == [LearningRateScale(step / 10, step / 10) for step in range(1, 11)]
    assert [scale.encoder for scale in falling] == pytest.approx([1 - step / 20 for step in range(20)])
    assert all(scale.encoder == scale.decoder for scale in rising + falling)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 200), st.floats(0, 0.99), st.floats(0.01, 1))
def test_scales_stay_within_bounds_however_short_the_run(name, steps, warmup, halve_every):
    found = scales(steps, name=name, warmup=warmup, halve_every=halve_every)
    assert all(0 <= scale.encoder <= scale.decoder <= 1 for scale in found)
    assert max(scale.decoder for scale in found) == 1
    assert found == scales(steps, name=name, warmup=warmup, halve_every=halve_every)


@pytest.mark.parametrize("wrong", [{"name": "cosine"}, {"warmup": 1.0}, {"power": 0}, {"halve_every": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        ScheduleSettings(**wrong)
