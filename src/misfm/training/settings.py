"""How long and how to train; apart from the loop, so that reading settings does not load it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from misfm.settings import Settings
from misfm.training.optim import OptimizerSettings
from misfm.training.schedules import ScheduleSettings

Count = Annotated[int, Field(ge=1, le=10**9)]


class OpenTrainingSettings(Settings):
    """How to train; for how long may be left open."""

    steps: Count | None = None
    """Optimiser steps; null is planned, in fine-tuning."""
    accumulate: Count = 1
    """Batches whose gradients are averaged into one step."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimiser and its numbers."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Learning rate over the run."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights that is validated and kept, such as 0.99; 0 keeps the last
    weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the device computes in it natively, else float32."""
    num_workers: Annotated[int, Field(ge=0, le=10**4)] = 0
    """Processes that read patches ahead; 0 reads in the training process."""
    log_every: Count = 20
    """Steps between rows of metrics.jsonl."""
    validate_every: Count = 500
    """Steps between validations."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    patience: Count | None = None
    """Validations without a better one after which the rate falls to zero within a tenth of all steps and
    training ends; null takes all steps. Pretraining that is probed has the patience of its probe instead."""


class TrainingSettings(OpenTrainingSettings):
    """How long and how to train."""

    steps: Count
    """Optimiser steps."""
