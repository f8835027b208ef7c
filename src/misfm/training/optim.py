"""Optimisers, with one group of parameters for the encoder and one for everything else."""

from __future__ import annotations

from typing import Annotated, Literal

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


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return an optimiser with the groups [encoder, rest]; biases and norms are not decayed."""
    groups = []
    for in_encoder in (True, False):
        for decayed in (True, False):
            parameters = [
                parameter
                for name, parameter in model.named_parameters()
                if is_encoder(name) == in_encoder and (parameter.ndim > 1) == decayed
            ]
            weight_decay = settings.weight_decay if decayed else 0.0
            groups.append({"params": parameters, "weight_decay": weight_decay, "in_encoder": in_encoder})
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, scale: LearningRateScale) -> None:
    """Give each group its share of the peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = peak * (scale.encoder if group["in_encoder"] else scale.decoder)


def is_encoder(parameter_name: str) -> bool:
    """Whether a parameter belongs to the encoder of a model made of backbone and head."""
    return "backbone.encoder." in f".{parameter_name}"
