"""Checkpoints: everything needed to resume a run, written so that a kill never leaves half a file.

A checkpoint is a file of torch, a zip archive, in whose comment is the checksum of all that comes before it:
torch does not verify those of the archive.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from misfm.errors import WeightsError
from misfm.files import atomic_write, checksum
from misfm.terminal import logger
from misfm.training.ema import WeightAverage
from misfm.weights.archives import save

COMMENT = re.compile(rb"misfm crc32 ([0-9a-f]{8})")
LENGTH = len(b"misfm crc32 ") + 8
CHUNK = 1 << 24


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
    unjudged: dict[str, float] | None = None
    """What is to be logged of ``step``, whose validation was interrupted and is to be done; else None."""
    metrics: int | None = None
    """Checksum of what had been logged; None where that was not recorded, and in the best checkpoint."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of the loss, in float16; empty in other types."""
    run: int | None = None
    """Checksum of the settings of the run that saved it; None where that was not recorded."""

    @property
    def logged(self) -> int:
        """The last step of which rows in the log are kept: one that is to be judged again is logged again."""
        return self.step if self.unjudged is None else self.step - 1


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        checkpoint: what it holds.
        previous: where the checkpoint that it replaces is kept, if that is.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary:
        save(unshared(vars(checkpoint)), temporary)
        seal(temporary)
        if previous is not None and path.exists():
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)  # so that there is a last checkpoint at every moment
            except OSError:  # a file system without links
                os.replace(path, previous)


def unshared(value: Any) -> Any:
    """Return equal values, whose texts are one object each and whose containers are new.

    A pickle refers to objects that it has met before, so equal states would else be different files: in a
    resumed run other objects are shared than in one that was never stopped.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {unshared(name): unshared(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([unshared(one) for one in value])
    return value


def seal(path: Path) -> None:
    """Append the checksum of a zip archive to it, as its comment."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment ends an archive that has none
        file.write(LENGTH.to_bytes(2, "little"))
        file.write(b"misfm crc32 %08x" % _checksum(file, file.tell()))


def _checksum(file: IO[bytes], size: int) -> int:
    """The checksum of the first bytes of a file, which then stands behind them."""
    file.seek(0)
    total = 0
    while size and (chunk := file.read(min(CHUNK, size))):
        total = checksum(chunk, total)
        size -= len(chunk)
    return total


def is_sound(path: Path) -> bool:
    """Whether a checkpoint is as it was written, as far as can be said: earlier ones have no checksum."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LENGTH - 2))
        announced, comment = file.read(2) == LENGTH.to_bytes(2, "little"), file.read()
        if (found := COMMENT.fullmatch(comment)) is None:
            return not announced
        return _checksum(file, size - LENGTH) == int(found[1], 16)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; tensors and plain values only, nothing is executed.

    Raises:
        WeightsError: the file is damaged or is no checkpoint.
    """
    try:
        if not is_sound(path):
            raise ValueError("its checksum does not fit")
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise WeightsError(
            f"{path} is not a readable checkpoint ({reason}); delete it to start the run again."
        ) from error


def load_latest(last: Path, previous: Path) -> tuple[Checkpoint, Path] | None:
    """Read the last checkpoint, or the one before it where that is damaged or gone; None without any.

    Returns:
        The checkpoint, and the file it was in.

    Raises:
        WeightsError: none of those that are there can be read.
    """
    damaged: WeightsError | None = None
    for path in (last, previous):
        if not path.exists():
            continue
        try:
            found = load_checkpoint(path)
        except WeightsError as error:
            damaged = damaged or error
            continue
        if damaged is not None:
            logger.warning("%s is damaged: going on from the checkpoint before it.", last)
        return found, path
    if damaged is not None and previous.exists():
        raise WeightsError(
            f"{last} is not a readable checkpoint, nor is the one before it: delete {last.parent} to start "
            "the run again."
        )
    if damaged is not None:
        raise damaged
    return None


def restore(
    checkpoint: Checkpoint,
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Put the state of a checkpoint, read from ``path``, into a network, its optimiser and its average.

    Raises:
        WeightsError: it is of another network or optimiser.
    """
    try:
        if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
            checkpoint = shares_of(checkpoint, model, optimizer, average)
        model.load_state_dict(checkpoint.model)
        if checkpoint.step:
            check_optimizer(optimizer, checkpoint.optimizer)
            optimizer.load_state_dict(checkpoint.optimizer)
            if average is not None:
                average.restore(checkpoint.average)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(
            f"{path} is the checkpoint of another network or optimiser than this run's: put back its own, or "
            f"delete {path.parent} to start the run again."
        ) from error


def check_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Check that a state is of such an optimiser, which torch finds out in the next step.

    Raises:
        ValueError: it is not.
    """
    kinds = {"betas", "momentum"}
    for group, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        if kinds & group.keys() != kinds & theirs.keys():
            raise ValueError("another optimiser")
        for parameter, number in zip(group["params"], theirs["params"], strict=True):
            for value in saved["state"].get(number, {}).values():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError("another shape")


def shares_of(
    checkpoint: Checkpoint,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> Checkpoint:
    """Return this rank's shares of the tensors of a checkpoint; all ranks have to ask, with the same one.

    Args:
        checkpoint: with whole tensors.
        model: as shared out, that is to take them, as are the following.
        optimizer: of it.
        average: of its weights.

    Raises:
        ValueError: a tensor has another shape.
    """
    from misfm.training.sharding import optimizer_shares, shares  # of the parts of torch that load slowly

    theirs = checkpoint.average if average is not None else {}
    return replace(
        checkpoint,
        model=shares(checkpoint.model, model.state_dict()),
        optimizer=optimizer_shares(checkpoint.optimizer, optimizer) if checkpoint.step else {},
        average=shares(theirs, average.values if average is not None else {}),
    )
