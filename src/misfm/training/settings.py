"""How long and how to train; apart from the loop, so that reading settings does not load it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 autocast where the device computes in it natively; on a GPU that has tensor cores but no
    bfloat16 float16, whose loss is scaled, and whose steps that overflow are left out; else float32."""
    compile: bool = False
    """Compile the network (torch.compile): a minute or more before the first step, and again before the first
    validation and for each other patch size; pays in long runs on a GPU. Needs a C++ compiler, or Triton."""
    channels_last: bool = False
    """Keep the channels of a voxel side by side in memory, as some GPUs convolve faster; the same numbers up
    to rounding. `benchmarks/gpu.py` measures whether it pays."""
    recompute_activations: bool = False
    """Compute what is within the blocks of the network again in the backward pass instead of keeping it
    (activation or gradient checkpointing): the same steps in less memory and more time. Not together with
    ``compile``."""
    num_workers: Annotated[int, Field(ge=0, le=10**4)] | None = None
    """Processes that read patches ahead for each training process; 0 reads in that itself. null: none on a
    CPU; for a GPU as many as it has cores for itself but one, 12 at most. It changes no number of the run, so
    it may change when a run goes on."""
    log_every: Count = 20
    """Steps between rows of metrics.jsonl."""
    validate_every: Count = 500
    """Steps between validations."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    patience: Count | None = None
    """Validations without a better one after which the rate falls to zero within a tenth of all steps and
    training ends; null takes all steps. Pretraining that is probed has the patience of its probe instead."""

    @model_validator(mode="after")
    def _is_computed_in_one_way(self) -> Self:
        if self.compile and self.recompute_activations:
            raise ValueError("compile and recompute_activations do not go together: choose one")
        return self


class TrainingSettings(OpenTrainingSettings):
    """How long and how to train."""

    steps: Count
    """Optimiser steps."""
