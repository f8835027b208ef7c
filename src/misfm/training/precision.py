"""What a training step is computed in: bfloat16 where the device is fast at it, float32 where it must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from misfm.errors import ConfigError

CONVOLUTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}


Mixed = Literal["bf16-mixed", "16-mixed", "32-true"]
NAMES: dict[str, Mixed] = {"bfloat16": "bf16-mixed", "float16": "16-mixed", "float32": "32-true"}
TENSOR_CORES = 7
"""Compute capability from which a GPU multiplies float16 faster than float32."""


def fabric_precision(precision: str) -> Mixed:
    """Translate a precision setting; ``auto`` takes a short type only where it is computed natively.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if precision == "float16" and not torch.cuda.is_available():
        raise ConfigError(
            "training.precision float16 is for GPUs, and this machine has none: choose auto, bfloat16 or "
            "float32."
        )
    return NAMES[native_precision() if precision == "auto" else precision]


def native_precision() -> str:
    """Return the type that the device computes in fast and that trains."""
    if not torch.cuda.is_available():
        return "bfloat16" if has_bfloat16_cpu() else "float32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float16" if torch.cuda.get_device_capability()[0] >= TENSOR_CORES else "float32"


def has_bfloat16_cpu() -> bool:
    """Whether the processor multiplies bfloat16 (AVX512-BF16 or AMX); emulation is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def exact_convolutions(device: torch.device) -> AbstractContextManager[Any]:
    """Context for a forward pass on ``device``: on a CPU, :class:`SmallConvolutions`."""
    return SmallConvolutions() if device.type == "cpu" else nullcontext()


@contextmanager
def judging(device: torch.device) -> Iterator[None]:
    """Context for passes through a network on ``device`` that is judged and not trained."""
    with torch.inference_mode(), exact_convolutions(device):
        yield


class SmallConvolutions(TorchFunctionMode):
    """Leaves convolutions out of bfloat16 autocast where the volume is no larger than the kernel on an axis.

    With AVX512-BF16, oneDNN (of torch 2.13) returns partly uninitialised gradients there, such as those of a
    3^3 kernel over two slices; other such shapes give wrong values or damage the heap. Only the coarsest
    level of a network is ever that small, so that float32 costs next to nothing. Without autocast it changes
    nothing.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``, without autocast if it is a convolution of something small."""
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and torch.is_autocast_enabled("cpu") and is_small(*operands(args, kwargs)):
            with torch.autocast("cpu", enabled=False):
                return func(
                    *map(in_float32, args), **{name: in_float32(value) for name, value in kwargs.items()}
                )
        return func(*args, **kwargs)


def operands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Input and weight of a convolution, however they were given."""
    given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs)
    return cast(Tensor, given["input"]), cast(Tensor, given["weight"])


def is_small(volume: Tensor, weight: Tensor) -> bool:
    """Whether a kernel that is more than a point covers ``volume`` (B, C, ...) along an axis."""
    return any(1 < kernel >= side for side, kernel in zip(volume.shape[2:], weight.shape[2:], strict=False))


def in_float32(value: Any) -> Any:
    """Return floating-point tensors in float32, and all else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
