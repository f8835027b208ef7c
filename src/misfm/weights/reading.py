"""The boundary around reading a file of weights: what it makes a reader raise becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from misfm.documents import MOST_DEPTH, MOST_VALUES, Malformed
from misfm.errors import MisfmError, WeightsError
from misfm.memory import available_bytes, in_gib, is_out_of_memory

MOST_EXPANDED = 2**28
"""Bytes that a tensor may stand for beyond those that are stored for it."""
MOST_TIMES = 16
"""A file of weights takes less than this times its size, whatever reads it."""
COPIES = 2
"""Of a file of ours while it is read: its bytes and its tensors."""
PLAIN_TYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)
"""Types with which torch can compute everywhere."""


@contextmanager
def reading(source: Path | str, fault: str, remedy: str) -> Iterator[None]:
    """Put what a file makes the code within raise into words; for libraries and readers of a format alone.

    Args:
        source: of the weights.
        fault: what is wrong with it if reading fails, a clause without its subject.
        remedy: what to do, a clause.

    Raises:
        WeightsError: whatever is raised within and is not a sentence already. Where memory ran out, that is
            what it says, unless there was plenty for a file of that size.
    """
    try:
        yield
    except MisfmError:
        raise
    except Exception as error:  # there is no end to what damaged bytes make a reader raise
        if is_out_of_memory(error) and not _asks_too_much(source):
            raise WeightsError(
                f"There is not enough memory to read {source}: free some, or use a larger machine."
            ) from error
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if is_out_of_memory(error):
            reason = "it asks for more memory than it can fill"
        raise WeightsError(f"{source} {fault} ({reason or type(error).__name__}); {remedy}.") from error


def _asks_too_much(source: Path | str) -> bool:
    """Whether memory ran out over a file for which there is plenty."""
    path = Path(source)
    return path.is_file() and MOST_TIMES * path.stat().st_size < available_bytes()


def check_room(path: Path) -> None:
    """Refuse a file that is larger than what is free in memory, before it is read.

    Raises:
        WeightsError: says how much is missing.
    """
    needed, free = COPIES * path.stat().st_size, available_bytes()
    if needed > free:
        raise WeightsError(
            f"Reading {path} takes {in_gib(needed)} of memory and {in_gib(free)} are free: free some, or "
            "use a larger machine."
        )


def check_plain(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that cannot be computed with like any other, or stands for far more than is stored.

    Raises:
        Malformed: names it.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in PLAIN_TYPES
    if not plain:
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}".replace("torch.", "")
        raise Malformed(f"{name} is no plain tensor but {kind}")
    stands_for = tensor.numel() * tensor.element_size()
    if stands_for > tensor.untyped_storage().nbytes() + MOST_EXPANDED:
        raise Malformed(f"{name} repeats few stored numbers up to {stands_for:,} bytes")


def check_content(content: object) -> None:
    """Refuse what a checkpoint holds where it is nested too deeply or stands for more values than it stores.

    Values that are shared are stored once, and a reader that follows them meets them every time.

    Raises:
        Malformed: says what is wrong.
    """
    _extent(content, "it", 0, {})


def _extent(value: object, name: str, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values one stands for, and how deeply it is nested; ``known`` holds those of shared ones."""
    if isinstance(value, Tensor):
        check_plain(name, value)
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf":
            raise Malformed(f"{name} is no array of numbers but of {value.dtype.name}")
        return int(value.size), 0
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return 1, 0
    if depth > MOST_DEPTH:
        raise Malformed(f"it is nested more than {MOST_DEPTH} deep")
    found = known.get(id(value))
    if found is None:
        named = value.items() if isinstance(value, Mapping) else ((name, one) for one in value)
        inside = [_extent(one, str(key)[:100], depth + 1, known) for key, one in named]
        found = 1 + sum(count for count, _ in inside), 1 + max((height for _, height in inside), default=0)
        known[id(value)] = found
    count, height = found
    if count > MOST_VALUES:
        raise Malformed(f"it stands for more than {MOST_VALUES:,} values")
    if depth + height > MOST_DEPTH:
        raise Malformed(f"it is nested more than {MOST_DEPTH} deep")
    return found
