"""Optimisers, with groups of parameters for the encoder, level by level if asked for, and for the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from misfm.settings import Settings
from misfm.training.schedules import LearningRateScale

Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """Which optimiser, and its numbers."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw (ours, Primus) | adam (MIS-FM) | sgd (nnU-Net, ResEnc)."""
    lr: Annotated[float, Field(gt=0, lt=10)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Decoupled for adamw, an L2 penalty for adam and sgd."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Moment decay of adam and adamw (Primus: 0.9, 0.98)."""
    momentum: Fraction = 0.99
    """Momentum of sgd, Nesterov's where it is above 0."""
    clip_norm: Annotated[float, Field(ge=0)] = 12.0
    """Largest norm of all gradients together (nnU-Net 12, Primus 1); 0 does not clip."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the rate from each level of the encoder to the next towards the input; the decoder has the
    full rate, the deepest level this share of it, the stem the least. 1 gives all the same."""


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return an optimiser with groups of the encoder (one a level if they decay) and of the rest.

    Biases and norms are in groups of their own and not decayed.
    """
    levels = encoder_levels([name for name, _ in model.named_parameters() if is_encoder(name)])
    depth = 1 + max(levels.values(), default=0)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = settings.layer_decay ** (depth - levels[name]) if name in levels else 1.0
        groups.setdefault((name in levels, rate, parameter.ndim > 1), []).append(parameter)
    return optimizer_of(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "in_encoder": in_encoder,
                "rate": rate,
            }
            for (in_encoder, rate, decayed), parameters in groups.items()
        ],
        settings,
    )


def optimizer_of(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name."""
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, scale: LearningRateScale) -> None:
    """Give each group its share of the peak rate."""
    for group in optimizer.param_groups:
        share = group.get("rate", 1.0)  # not in checkpoints from before ``layer_decay``
        group["lr"] = peak * share * (scale.encoder if group["in_encoder"] else scale.decoder)


def is_encoder(parameter_name: str) -> bool:
    """Whether a parameter belongs to the encoder of a model made of backbone and head."""
    return "backbone.encoder." in f".{parameter_name}"


def encoder_levels(names: Sequence[str]) -> dict[str, int]:
    """Return how deep each parameter of an encoder lies, from 0 at the stem, by names in order of definition.

    The first number in a name behind ``encoder.`` is that of its level: ``levels.2`` and ``down2`` lie at 3.
    Parameters without a number belong to the stem where they come before all numbered ones, and else to the
    deepest level, as a last norm does.
    """
    numbers = [re.search(r"\d+", name.partition("backbone.encoder.")[2]) for name in names]
    found = [None if number is None else 1 + int(number[0]) for number in numbers]
    deepest, levels, is_stem = max((level for level in found if level is not None), default=0), {}, True
    for name, level in zip(names, found, strict=True):
        is_stem = is_stem and level is None
        levels[name] = level if level is not None else (0 if is_stem else deepest)
    return levels
