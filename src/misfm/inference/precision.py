"""What a prediction is computed in: 16 bits where the device is fast at them, and 32 where it is not.

In how many voxels label maps in 16 bits differ from those in 32 is measured by ``benchmarks/prediction.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from misfm.errors import ConfigError
from misfm.training.precision import exact_convolutions, has_bfloat16_cpu

Precision = Literal["auto", "float32", "bfloat16", "float16"]
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16_SINCE, _FLOAT16_SINCE = 8, 7
"""Major compute capability from which GPUs have units for products of matrices in these types."""


@dataclass(frozen=True)
class Computing:
    """How a network is computed.

    Attributes:
        precision: in what.
        batch_size: windows in one pass; None chooses what fits (:class:`misfm.inference.passes.Batching`).
        reuse: compute windows of one value only once (:mod:`misfm.inference.passes`).
    """

    precision: Precision = "auto"
    batch_size: int | None = None
    reuse: bool = True


def check_precision(name: str) -> Precision:
    """Return the name of a precision.

    Raises:
        ConfigError: there is none of this name.
    """
    names = get_args(Precision)
    for known in names:
        if name == known:
            found: Precision = known
            return found
    raise ConfigError(f"There is no precision '{name}'; choose one of {', '.join(names)}.")


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Return what to compute in; ``auto`` takes 16 bits only where the device multiplies them natively."""
    if precision != "auto":
        return _TYPES[precision]
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= _BFLOAT16_SINCE:
            return torch.bfloat16
        return torch.float16 if major >= _FLOAT16_SINCE else torch.float32
    return torch.bfloat16 if device.type == "cpu" and has_bfloat16_cpu() else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """Return the name of what is computed in, such as ``bfloat16``."""
    return next(name for name, known in _TYPES.items() if known == dtype)


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Compute layers in ``dtype`` while the context lasts, as training does; float32 changes nothing."""
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype), exact_convolutions(device):
        yield
