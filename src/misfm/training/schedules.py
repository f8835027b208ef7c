"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state.

Each returns how much of the peak learning rate the encoder and the rest of the network (decoder and head)
get at a step; 0 freezes that part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from misfm.settings import Settings

ScheduleName = Literal["constant", "poly", "warmup", "halving", "sawtooth"]


class ScheduleSettings(Settings):
    """Which schedule, and its few numbers."""

    name: ScheduleName = "poly"
    """constant | poly | warmup (linear, then poly) | halving | sawtooth."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of the poly decay (nnU-Net 0.9, MIS-FM demo 0.8)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps spent in each linear warm-up (OpenMind: 0.05)."""
    halve_every: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps after which ``halving`` halves the rate (MIS-FM: 20 k of 100 k)."""


@dataclass(frozen=True)
class LearningRateScale:
    """Factors on the peak learning rate, 0..1."""

    encoder: float
    decoder: float


def constant(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Return the peak throughout."""
    return LearningRateScale(1.0, 1.0)


def poly(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Return (1 - step / steps) ** power."""
    return both(decay(step, steps, settings.power))


def warmup(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Rise linearly over the warm-up, then decay as :func:`poly` over the remaining steps."""
    rise = warmup_steps(steps, settings)
    if step < rise:
        return both((step + 1) / rise)
    return both(decay(step - rise, steps - rise, settings.power))


def halving(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Halve the rate at equal intervals (MIS-FM, pretraining and fine-tuning)."""
    return both(0.5 ** (step // max(1, round(settings.halve_every * steps))))


def sawtooth(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Warm the decoder up alone, then everything, then decay (OpenMind, arXiv 2412.17041).

    Phases: decoder up and down again with the encoder frozen, each of half a warm-up; one warm-up of all;
    poly decay over what remains.
    """
    rise = warmup_steps(steps, settings)
    half = max(1, rise // 2)
    if step < half:
        return LearningRateScale(0.0, (step + 1) / half)
    if step < 2 * half:
        return LearningRateScale(0.0, decay(step - half, half, settings.power))
    if step < 2 * half + rise:
        return both((step - 2 * half + 1) / rise)
    used = 2 * half + rise
    return both(decay(step - used, steps - used, settings.power))


SCHEDULES: dict[ScheduleName, Callable[[int, int, ScheduleSettings], LearningRateScale]] = {
    "constant": constant,
    "poly": poly,
    "warmup": warmup,
    "halving": halving,
    "sawtooth": sawtooth,
}


def learning_rate_scale(step: int, steps: int, settings: ScheduleSettings) -> LearningRateScale:
    """Factors at ``step`` (0-based) of a run of ``steps``."""
    return SCHEDULES[settings.name](step, steps, settings)


def cooled(scale: LearningRateScale, step: int, steps: int) -> LearningRateScale:
    """Let factors fall to zero in equal parts: those of ``step`` (0-based) of a cooldown of ``steps``."""
    left = decay(step, steps, power=1.0)
    return LearningRateScale(scale.encoder * left, scale.decoder * left)


def both(factor: float) -> LearningRateScale:
    """Return the same factor for all parts."""
    return LearningRateScale(factor, factor)


def decay(step: int, steps: int, power: float) -> float:
    """Fall from 1 at step 0 to 0 at ``steps``."""
    return float(max(0.0, 1 - step / max(steps, 1)) ** power)


def warmup_steps(steps: int, settings: ScheduleSettings) -> int:
    """Length of one warm-up, at least one step."""
    return max(1, round(settings.warmup * steps))
