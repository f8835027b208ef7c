"""bfloat16 where it can be trusted: convolutions of volumes no larger than their kernel stay in float32."""

import pytest
import torch
from torch import nn

from misfm.training.precision import exact_convolutions

CPU = torch.device("cpu")


def leave_nans_in_freed_memory():
    for exponent in range(8, 19):
        blocks = [torch.full((2**exponent,), float("nan")) for _ in range(3)]
        del blocks


def gradients(conv, volume, towards):
    """Of the weight and of the volume, with NaN in all memory that is not written before it is read."""
    conv.zero_grad()
    volume = volume.clone().requires_grad_()
    leave_nans_in_freed_memory()
    result = conv(volume)
    leave_nans_in_freed_memory()
    result.backward(towards.to(result.dtype))
    return conv.weight.grad.clone(), volume.grad


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv3d(16, 32, 3, padding=1), (2, 2, 2)),
        (nn.Conv3d(16, 32, 3, padding=1), (2, 8, 8)),
        (nn.Conv3d(16, 32, (3, 1, 1), padding=(1, 0, 0)), (2, 16, 16)),
        (nn.Conv3d(16, 32, 3, stride=2, padding=1), (1, 1, 1)),
        (nn.Conv3d(16, 32, 5, padding=2), (4, 4, 4)),
        (nn.Conv3d(16, 32, 8, stride=8), (8, 8, 8)),
        (nn.ConvTranspose3d(16, 32, 3, stride=2, padding=1), (1, 1, 1)),
        (nn.Conv3d(16, 32, 3, padding=1), (6, 6, 6)),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else type(value).__name__,
)
def test_gradients_under_autocast_are_those_of_float32_up_to_rounding(conv, shape):
    torch.manual_seed(0)
    volume = torch.randn(2, 16, *shape)
    towards = torch.randn_like(conv(volume))
    exact = gradients(conv, volume, towards)
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_convolutions(CPU):
        rounded = gradients(conv, volume, towards)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()


@pytest.mark.parametrize(
    ("kernel", "shape", "expected"),
    [
        (3, (4, 4, 4), torch.bfloat16),
        (3, (4, 4, 3), torch.float32),
        (3, (2, 16, 16), torch.float32),
        (1, (1, 1, 1), torch.bfloat16),
        ((1, 3, 3), (1, 8, 8), torch.bfloat16),
    ],
)
def test_only_what_is_as_small_as_its_kernel_leaves_bfloat16(kernel, shape, expected):
    conv = nn.Conv3d(4, 4, kernel, padding="same")
    with exact_convolutions(CPU):
        assert conv(torch.zeros(1, 4, *shape)).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv(torch.zeros(1, 4, *shape)).dtype == expected
