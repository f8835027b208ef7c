"""The sliding window: covers everything and blends with weights that sum to one."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from misfm.errors import ConfigError
from misfm.inference.sliding_window import (
    blending_profiles,
    gaussian_weights,
    pad_to_window,
    predict_logits,
    window_starts,
)


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 2, *x.shape[2:])


class Mixing(nn.Module):
    """A small convolution: what it says at a voxel depends on where the window ends."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, classes, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def assemble(network, image, window, **options):
    slabs = list(predict_logits(network.eval(), image, window, **options))
    ends = [start + slab.shape[1] for start, slab in slabs]
    assert [start for start, _ in slabs] == [0, *ends[:-1]]
    return torch.cat([slab for _, slab in slabs], dim=1)


def accumulate_everything(network, image, window, overlap):
    """The obvious implementation: pad, weigh, sum over the whole volume, divide."""
    padded, (d, h, w) = pad_to_window(image, window)
    total, weights = 0, torch.zeros(padded.shape[1:])
    bell_d, bell_h, bell_w = (gaussian_weights(side) for side in window)
    bell = bell_d[:, None, None] * bell_h[:, None] * bell_w
    starts = [window_starts(side, size, overlap) for side, size in zip(padded.shape[1:], window, strict=True)]
    for corner in product(*starts):
        place = tuple(slice(a, a + b) for a, b in zip(corner, window, strict=True))
        logits = torch.zeros(3, *padded.shape[1:])
        logits[:, *place] = network(padded[None, :, *place])[0].detach() * bell
        total, weights[place] = total + logits, weights[place] + bell
    full = total / weights
    return full[:, d : d + image.shape[1], h : h + image.shape[2], w : w + image.shape[3]]


@given(length=st.integers(1, 300), window=st.integers(1, 130), overlap=st.floats(0, 0.95))
def test_windows_cover_every_voxel_with_the_overlap_asked_for(length, window, overlap):
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] == max(0, length - window)
    step = max(1, int(window * (1 - overlap)))
    assert all(b - a <= step for a, b in pairwise(starts))


def test_window_starts_by_hand():
    assert window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert window_starts(11, 4, 0) == [0, 4, 7]
    assert window_starts(3, 4, 0.5) == [0]


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_impossible_overlap_is_refused(overlap):
    with pytest.raises(ConfigError, match="overlap"):
        window_starts(10, 4, overlap)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 255])
def test_gaussian_is_positive_and_symmetric(length):
    bell = gaussian_weights(length)
    assert bell.dtype == torch.float32
    assert (bell > 0).all()
    assert torch.equal(bell, bell.flip(0))


@given(length=st.integers(1, 90), window=st.integers(1, 40), overlap=st.sampled_from([0, 0.25, 0.5, 0.75]))
def test_profiles_of_all_windows_sum_to_one(length, window, overlap):
    total = torch.zeros(max(length, window))
    for start, weights in blending_profiles(length, window, overlap):
        assert (weights > 0).all()
        total[start : start + window] += weights
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


SHAPES = [(17, 9, 23), (5, 30, 8), (3, 4, 5), (8, 8, 8), (40, 8, 11)]


@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_blended_weights_sum_to_one(shape, overlap):
    ones = assemble(Constant(), torch.randn(1, *shape), (8, 8, 8), overlap=overlap)
    assert ones.shape == (2, *shape)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_accumulating_the_whole_volume(shape, overlap):
    network, image = Mixing(), torch.randn(1, *shape)
    window = (8, 7, 6)
    streamed = assemble(network, image, window, overlap=overlap, batch_size=3)
    assert torch.allclose(streamed, accumulate_everything(network, image, window, overlap), atol=1e-5)


def test_yielded_slabs_stay_as_they_were():
    image = torch.randn(1, 20, 9, 9)
    kept = [(slab, slab.clone()) for _, slab in predict_logits(Mixing().eval(), image, (6, 6, 6))]
    assert len(kept) > 3
    assert all(torch.equal(slab, copy) for slab, copy in kept)


def test_padding_holds_the_lowest_value_of_each_channel():
    image = torch.tensor([[3.0, 4.0], [-1.0, 7.0]]).view(2, 1, 1, 2)
    padded, start = pad_to_window(image, (1, 1, 5))
    assert padded.flatten(1).tolist() == [[3, 3, 4, 3, 3], [-1, -1, 7, -1, -1]]
    assert start == (0, 0, 1)


def test_deep_supervision_low_precision_and_reused_outputs():
    """Takes the finest of a list, sums in float32, and never writes into what the network returned."""
    held = torch.ones(1, 2, 4, 4, 4, dtype=torch.bfloat16)

    class Reusing(nn.Module):
        def forward(self, x):
            return [held, held[:, :, ::2, ::2, ::2]]

    out = assemble(Reusing(), torch.zeros(1, 9, 4, 6, dtype=torch.int16), (4, 4, 4))
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.ones_like(out), atol=1e-5)
    assert torch.equal(held, torch.ones_like(held))


def test_mirroring_averages_over_all_flips():
    network, image = Mixing(), torch.randn(1, 6, 6, 6)
    mirrored = assemble(network, image, (6, 6, 6), mirror_axes=(0, 2))
    by_hand = torch.zeros(3, 6, 6, 6)
    for dims in ([], [1], [3], [1, 3]):
        by_hand += network(image.flip(dims)[None])[0].detach().flip(dims) / 4
    assert torch.allclose(mirrored, by_hand, atol=1e-5)
    assert torch.allclose(
        assemble(network, image.flip(3), (6, 6, 6), mirror_axes=(2,)).flip(3),
        assemble(network, image, (6, 6, 6), mirror_axes=(2,)),
        atol=1e-5,
    )


def test_no_gradients_are_kept_and_none_are_switched_off_for_the_caller():
    for _, slab in predict_logits(Mixing().eval(), torch.randn(1, 9, 5, 5), (4, 4, 4)):
        assert not slab.requires_grad
        assert torch.is_grad_enabled()
