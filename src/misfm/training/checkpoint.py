"""Checkpoints: everything needed to resume a run, written so that a kill never leaves half a file."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from misfm.errors import WeightsError
from misfm.files import atomic_write


@dataclass
class Checkpoint:
    """The state of a run after ``step`` steps.

    There is no generator state in it: every draw of a run is seeded by the step it is made for.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    best_score: float | None
    best_step: int | None
    average: dict[str, Any] = field(default_factory=dict)
    """Moving average of the weights; empty where none is kept, and in the best checkpoint, whose ``model`` it
    is."""
    cooldown_from: int | None = None
    """Steps after which patience had run out, and the rate began to fall to zero; None if it has not."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary:
        try:
            torch.save(vars(checkpoint), temporary)
        except RuntimeError as error:  # what torch makes of a write that fails
            raise OSError(errno.EIO, "writing failed, most likely the disk is full") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; tensors and plain values only, nothing is executed.

    Raises:
        WeightsError: the file is damaged or is no checkpoint.
    """
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start the run again."
        ) from error
