"""What makes a step faster on some devices and changes nothing but the last digits of its numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from misfm.training.recompute import recomputed
from misfm.training.settings import TrainingSettings


def made_ready(model: nn.Module, settings: TrainingSettings) -> nn.Module:
    """Lay a model out in memory and have it compiled, as the settings say; returns the same module."""
    if settings.channels_last:
        model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        model.register_forward_pre_hook(_channels_last)
    if settings.compile:
        model.compile()
    return model


def computed(model: nn.Module, settings: TrainingSettings) -> AbstractContextManager[None]:
    """Context of a training, in which blocks of the model are computed twice if the settings say so."""
    return recomputed(model) if settings.recompute_activations else nullcontext()


def _channels_last(model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Lay out the volumes (B, C, D, H, W) that a model is called with."""
    return tuple(
        each.contiguous(memory_format=torch.channels_last_3d)
        if isinstance(each, Tensor) and each.ndim == 5
        else each
        for each in args
    )


def is_fused(fabric: Fabric) -> bool:
    """Whether the optimiser updates all weights in one kernel: on a GPU, but where gradients are scaled.

    Fabric clips no gradients of a fused optimiser that takes the scale out itself.
    """
    return fabric.device.type == "cuda" and scaler_of(fabric) is None


def may_overflow(fabric: Fabric) -> bool:
    """Whether a gradient that is not finite is no fault: its step is left out, and the next is scaled less.

    It is one once the loss is not scaled up any more. Reading that waits for the device.
    """
    scaler = scaler_of(fabric)
    return scaler is not None and float(scaler.get_scale()) >= 1


def restore_scale(fabric: Fabric, state: dict[str, Any]) -> None:
    """Go on with the scale of a checkpoint, which has none in types but float16."""
    if state:
        fabric.strategy.precision.load_state_dict(state)


def scaler_of(fabric: Fabric) -> Any:
    """What scales the loss in float16; None in other types."""
    return getattr(fabric.strategy.precision, "scaler", None)
