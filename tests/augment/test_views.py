"""Augmented views: where crops lie, and every step of the intensity chain against a plain version of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from misfm.augment.mirrors import flip
from misfm.augment.views import (
    View,
    ViewSettings,
    apply_view,
    bend,
    place,
    resize,
    sample_view,
    view_of_mask,
)
from misfm.seeding import generator_for

SEEDS = st.integers(0, 2**31)
SIDES = st.tuples(*[st.integers(1, 9)] * 3)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator_for(seed))


def smooth(*shape, seed=0):
    coarse = noise(1, 1, 4, 4, 4, seed=seed)
    return F.interpolate(coarse, size=shape, mode="trilinear")[0] + 0.05 * noise(1, *shape, seed=seed)


def bent(x, percentiles, gamma=1.0):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    bend(x, percentiles, gamma, out)
    return out


def published_contrast(x, percents):
    """PyMIC's three masks, in double precision."""
    x = x.astype(np.float64)
    low, high = np.percentile(x, percents)
    result = np.empty_like(x)
    below, above = x < low, x > high
    middle = ~below & ~above
    result[below] = (x[below] - x.min()) / (low - x.min() or 1) * 0.1
    result[middle] = 0.1 + 0.8 * (x[middle] - low) / (high - low)
    result[above] = 0.9 + 0.1 * (x[above] - high) / (x.max() - high or 1)
    return result


@given(SEEDS, st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 30))] * 3))
@settings(max_examples=100, deadline=None)
def test_crops_stay_within_the_valid_extent(seed, spans):
    extent = [[start for start, _ in spans], [start + length for start, length in spans]]
    view = sample_view(ViewSettings(), (16, 12, 8), extent, generator_for(seed))
    for start, size, side, low, high in zip(view.start, view.size, (16, 12, 8), *extent, strict=True):
        assert low <= start
        assert start + size <= high
        assert size == high - low or int(0.7 * side) <= size <= int(1.5 * side)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_masked_voxels_have_no_part_in_the_other_voxels_of_a_view(seed):
    size = (8, 9, 10)
    patch, mask = noise(1, 12, 13, 15, seed=seed), noise(12, 13, 15, seed=seed + 1) > 2
    view = sample_view(ViewSettings(), size, [[0, 0, 0], [12, 13, 15]], generator_for(seed))
    part = view_of_mask(mask, view, size)
    before, after = place(patch, view, size)[0], place(patch + 100 * mask, view, size)[0]
    assert torch.equal(before[~part], after[~part])
    assert int((before != after).sum()) >= 0.95 * int(part.sum())


def test_draws_cover_their_ranges():
    generator = generator_for(0)
    extent = [[0, 0, 0], [64, 64, 64]]
    views = [sample_view(ViewSettings(), (20, 20, 20), extent, generator) for _ in range(2000)]
    assert {view.size[0] for view in views} == set(range(14, 30))
    assert {view.start[2] for view in views} >= set(range(0, 35))
    for axis in (-3, -2, -1):
        assert np.mean([axis in view.flips for view in views]) == pytest.approx(0.5, abs=0.04)
    low, high = np.array([view.percentiles for view in views]).T
    gamma = np.array([view.gamma for view in views])
    for values, (least, most) in ((low, (0.1, 2)), (high, (98, 99.9)), (gamma, (0.7, 1.5))):
        assert least <= values.min() < values.max() <= most
        assert values.mean() == pytest.approx((least + most) / 2, abs=0.03 * (most - least) + 0.01)


def test_the_source_holds_the_largest_crop():
    assert ViewSettings().source_size((64, 128, 128)) == (96, 192, 192)
    assert ViewSettings(scale=(0.5, 0.8)).source_size((40, 41, 42)) == (40, 41, 42)


@given(SEEDS, SIDES, SIDES, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_resizing_is_trilinear_with_corners_aligned(seed, source, target, channels):
    x = noise(channels, *(side + 2 for side in source), seed=seed)[:, 1:-1, 1:-1, 1:-1]
    before = x.clone()
    expected = F.interpolate(x[None], size=target, mode="trilinear", align_corners=True)[0]
    assert torch.allclose(resize(x, target), expected, atol=1e-5)
    assert torch.equal(x, before)


def test_flips_mirror_the_named_axes():
    x = noise(1, 3, 4, 5)
    assert torch.equal(flip(x, ()), x)
    assert torch.equal(flip(x, (-3, -1)), torch.from_numpy(x.numpy()[:, ::-1, :, ::-1].copy()))


@pytest.mark.parametrize("percentiles", [(0.1, 99.9), (2.0, 98.0), (0.7, 98.4)])
@pytest.mark.parametrize("offset", [0.0, -3.0, 100.0])
def test_contrast_is_piecewise_linear_between_four_points(percentiles, offset):
    x = smooth(12, 20, 16) + offset
    low, high = np.percentile(x.numpy().astype(np.float64), percentiles)
    expected = np.interp(x.numpy(), [float(x.min()), low, high, float(x.max())], [0, 0.1, 0.9, 1])
    stretched = bent(x, percentiles)
    assert np.abs(stretched.numpy() - expected).max() < 2e-6 * (1 + abs(offset) / 10)
    assert 0 <= float(stretched.min()) < 1e-15
    assert 1 - 1e-6 < float(stretched.max()) <= 1


def test_contrast_of_clipped_air_and_metal_is_as_published():
    x = smooth(12, 20, 16).clamp(-0.4, 0.5)
    stretched = bent(x, (1.0, 99.0)).numpy()
    assert np.abs(stretched - published_contrast(x.numpy(), (1.0, 99.0))).max() < 2e-6
    assert stretched[x.numpy() == x.min().item()] == pytest.approx(0.1)
    assert stretched[x.numpy() == x.max().item()] == pytest.approx(0.9)


def test_rounding_errors_in_air_stay_invisible():
    x = smooth(12, 20, 16).clamp(min=-0.4)
    air = x == x.min()
    rattled = x + 6e-8 * noise(1, 12, 20, 16, seed=1).sign()
    difference = (bent(rattled, (1.0, 99.0)) - bent(x, (1.0, 99.0))).abs()
    assert air.float().mean() > 0.05
    assert float(difference.max()) < 1e-5


@pytest.mark.parametrize("value", [0.0, -1.0, 1000.0])
def test_a_constant_patch_stays_constant(value):
    view = View((0, 0, 0), (5, 6, 7), (-2,), (1.0, 99.0), 1.3)
    patch = torch.full((1, 5, 6, 7), value)
    assert apply_view(patch, view, (8, 4, 7)).numpy() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_bends_between_minimum_and_maximum(gamma):
    x = bent(smooth(12, 20, 16).clamp(min=-0.4), (1.0, 99.0))
    unit = (x.double() - 0.1) / 0.9
    curved = bent(smooth(12, 20, 16).clamp(min=-0.4), (1.0, 99.0), gamma)
    assert float((curved - (0.1 + 0.9 * unit.pow(gamma))).abs().max()) < 2e-6
    assert float(curved.min()) == float(x.min())
    assert float(curved.max()) == float(x.max())


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_view_is_the_chain_of_its_parts(seed):
    source = torch.cat([smooth(20, 22, 24, seed=seed), 7 * noise(1, 20, 22, 24, seed=seed)])
    before = source.clone()
    view = sample_view(ViewSettings(), (12, 14, 16), [[1, 2, 3], [19, 22, 20]], generator_for(seed))
    seen = apply_view(source, view, (12, 14, 16))
    d, h, w = (slice(start, start + size) for start, size in zip(view.start, view.size, strict=True))
    crop = F.interpolate(source[None, :, d, h, w], size=(12, 14, 16), mode="trilinear", align_corners=True)
    for channel, whole in zip(seen, crop[0].flip(view.flips), strict=True):
        stretched = published_contrast(whole.numpy(), view.percentiles)
        assert np.abs(channel.numpy() - stretched**view.gamma).max() < 2e-4
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1
    assert torch.equal(source, before)


def test_a_view_of_the_patch_itself_leaves_it_alone():
    source = smooth(6, 7, 8)
    before = source.clone()
    apply_view(source, View((0, 0, 0), (6, 7, 8), (), (1.0, 99.0), 0.8), (6, 7, 8))
    assert torch.equal(source, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (1.5, 0.7)},
        {"scale": (0.0, 1.0)},
        {"gamma": (-1.0, 1.0)},
        {"low_percentile": (1.0, 60.0)},
        {"high_percentile": (99.0, 98.0)},
        {"p_flip": 1.5},
        {"flips": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        ViewSettings(**wrong)


@pytest.mark.parametrize("kind", ["plain", "clipped", "constant", "nearly constant"])
def test_sorting_as_a_gpu_does_gives_the_same(kind, monkeypatch):
    x = smooth(12, 20, 16)
    x = {
        "plain": x,
        "clipped": x.clamp(-0.4, 0.5),
        "constant": torch.full_like(x, -3.0),
        "nearly constant": 100 + 1e-5 * x.sign(),
    }[kind]
    found = bent(x, (1.0, 98.5), 1.3)
    monkeypatch.setattr("misfm.augment.percentiles.ON_CPU", ())
    rounding = 2e-4 if kind == "nearly constant" else 2e-6  # all is reckoned in single precision
    assert torch.allclose(bent(x, (1.0, 98.5), 1.3), found, atol=rounding)


def test_slabs_leave_no_seams(monkeypatch):
    x = smooth(12, 20, 16)
    whole = bent(x, (1.0, 98.5), 1.3)
    monkeypatch.setattr("misfm.augment.views.SLAB", 37)
    assert torch.allclose(bent(x, (1.0, 98.5), 1.3), whole, atol=1e-6)
