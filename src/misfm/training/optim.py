"""Optimisers, with groups of parameters for the encoder, level by level if asked for, and for the rest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from misfm.models import Backbone
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


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return an optimiser with groups of the encoder (one a level if they decay) and of the rest.

    Biases and norms are in groups of their own and not decayed.
    """
    depths = encoder_depths(model)
    num_depths = 1 + max(depths.values(), default=0)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = settings.layer_decay ** (num_depths - depths[name]) if name in depths else 1.0
        groups.setdefault((is_encoder(name), rate, parameter.ndim > 1), []).append(parameter)
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
        fused=fused,
    )


def optimizer_of(
    groups: list[dict[str, Any]], settings: OptimizerSettings, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name; a fused one has one kernel for all weights."""
    kernels = True if fused else None
    if settings.name == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=kernels
        )
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, fused=kernels)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, scale: LearningRateScale) -> None:
    """Give each group its share of the peak rate."""
    for group in optimizer.param_groups:
        share = group.get("rate", 1.0)  # not in checkpoints from before ``layer_decay``
        group["lr"] = peak * share * (scale.encoder if group["in_encoder"] else scale.decoder)


def is_encoder(parameter_name: str) -> bool:
    """Whether a parameter belongs to the encoder of a model made of backbone and head."""
    return "backbone.encoder." in f".{parameter_name}"


def encoder_depths(model: nn.Module) -> dict[str, int]:
    """How deep each parameter of a model's encoders lies, from 0 at the stem, by its name in the model."""
    return {
        f"{path}.encoder.{name}": depth
        for path, module in model.named_modules()
        if isinstance(module, Backbone)
        for name, depth in module.encoder_depths().items()
    }
