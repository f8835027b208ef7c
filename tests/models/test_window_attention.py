"""Attention while training on a CPU: the values and gradients of attention at once."""

import pytest
import torch
from torch import nn

from misfm.models.swin import WindowAttention, WindowSettings, lay_out
from misfm.models.window_attention import attend_in_turn

GRIDS = [((4, 5, 6), 3, True), ((4, 5, 6), 3, False), ((2, 5, 3), 4, True)]


def attention(grid, window, shifted, dropout=0.0):
    torch.manual_seed(0)
    settings = WindowSettings(grid, window, num_heads=2, dropout=dropout)
    module = WindowAttention(8, settings, shifted=shifted)
    nn.init.normal_(module.bias_table)
    return module


@pytest.mark.parametrize(("grid", "window", "shifted"), GRIDS)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_training_without_dropout_equals_evaluation_in_values_and_gradients(
    grid, window, shifted, num_threads
):
    module = attention(grid, window, shifted)
    x = torch.randn(2, grid[0] * grid[1] * grid[2], 8)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        results = []
        for training in (False, True):
            module.train(training).zero_grad()
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            results.append([y, leaf.grad, *(parameter.grad for parameter in module.parameters())])
    finally:
        torch.set_num_threads(before)
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_gradients_with_dropout_are_those_of_finite_differences():
    torch.manual_seed(0)
    layout = lay_out((2, 3, 4), side=2, shift=1)
    qkv = torch.randn(1, 25, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 8, 8, dtype=torch.float64, requires_grad=True)

    def attend(qkv, bias):
        torch.manual_seed(1)  # the same mask every time
        return attend_in_turn(qkv, bias, layout, 0.3)

    assert torch.autograd.gradcheck(attend, (qkv, bias), fast_mode=True)


def test_dropout_keeps_the_mean():
    module = attention((4, 4, 4), 4, False, dropout=0.5)
    x = torch.randn(1, 64, 8)
    with torch.no_grad():
        expected = module.eval()(x)
        module.train()
        mean = torch.stack([module(x) for _ in range(600)]).mean(dim=0)
        assert not torch.equal(module(x), module(x))
    assert (mean - expected).abs().max() < 0.15 * expected.abs().max()


def test_mixed_precision_trains():
    module = attention((4, 5, 6), 3, True, dropout=0.2).train()
    x = torch.randn(1, 120, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
