"""Layers for the CPU give what PyTorch's give, and dropout masks are as random as they say."""

import pytest
import torch
from torch import nn

from misfm.models.cpu import CHUNK, Dropout, InPlaneConv, PointwiseConv, PReLU, StepUp, fast_layout, fill_mask


def last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("layout", [torch.clone, last])
@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0])
def test_prelu_and_its_gradients_are_those_of_pytorch(layout, slope):
    torch.manual_seed(0)
    x = layout(torch.randn(2, 3, 4, 5, 6))
    gradient = torch.randn_like(x)
    results = []
    for module in (nn.PReLU(init=slope), PReLU(init=slope)):
        leaf = x.clone().requires_grad_()
        y = module.train()(leaf)
        y.backward(gradient)
        results.append((y, leaf.grad, module.weight.grad))
        assert torch.equal(module.eval()(x), y)
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", [torch.clone, last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (PointwiseConv(3, 4, 1), nn.Conv3d(3, 4, 1)),
        (InPlaneConv(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1))),
        (
            InPlaneConv(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        ),
        (StepUp(3, 4, (1, 2, 2)), nn.ConvTranspose3d(3, 4, (1, 2, 2), stride=(1, 2, 2))),
        (StepUp(3, 4, (2, 3, 4)), nn.ConvTranspose3d(3, 4, (2, 3, 4), stride=(2, 3, 4))),
    ],
    ids=lambda module: type(module).__name__,
)
def test_convolutions_and_their_gradients_are_those_of_pytorch(ours, theirs, training, layout):
    torch.manual_seed(0)
    x = layout(torch.randn(2, 3, 4, 5, 6))
    theirs.load_state_dict(ours.state_dict())
    results = []
    for module in (theirs, ours.train(training)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad, module.weight.grad, module.bias.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_mask_drops_with_the_probability_it_was_asked_for():
    torch.manual_seed(0)
    for dropout in (0.0, 0.2, 0.5, 0.9):
        mask = torch.empty(10 * CHUNK + 3, dtype=torch.uint8)
        fill_mask(mask, dropout)
        assert set(mask.unique().tolist()) <= {0, 1}
        assert mask.float().mean() == pytest.approx(1 - dropout, abs=0.003)
        if dropout == 0.2:
            lagged = (mask[1:] * mask[:-1]).float().mean()
            assert lagged == pytest.approx(0.64, abs=0.003)  # neighbours of one draw are independent


@pytest.mark.parametrize("layout", [torch.clone, last])
def test_dropout_keeps_the_mean_and_passes_gradients_where_it_kept(layout):
    torch.manual_seed(0)
    x = layout(torch.ones(2, 3, 8, 50, 50)).requires_grad_()
    y = Dropout(0.2).train()(x)
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert y.detach().mean() == pytest.approx(1, abs=0.02)
    y.backward(torch.full_like(y, 2))
    assert torch.equal(x.grad, 2 * y)
    assert y.stride() == x.stride()


def test_the_seed_decides_a_mask():
    def draw():
        torch.manual_seed(3)
        return Dropout(0.5).train()(torch.ones(100))

    assert torch.equal(draw(), draw())


def test_dropout_does_nothing_otherwise():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_the_fast_layout_keeps_values_and_puts_channels_last():
    x = torch.randn(1, 3, 2, 4, 5)
    assert torch.equal(fast_layout(x), x)
    assert fast_layout(x).is_contiguous(memory_format=torch.channels_last_3d)
