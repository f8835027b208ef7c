"""The weights that a training starts from: chosen, opened once, transferred, reported, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from misfm.config import FinetuneSettings
from misfm.data.channels import plain_names, same_names
from misfm.data.dataset import Dataset
from misfm.files import write_text
from misfm.models import Backbone
from misfm.planning.builtin import plan_weights
from misfm.planning.machine import present_machine
from misfm.settings import NO_WEIGHTS
from misfm.terminal import logger
from misfm.weights import Opened, TransferReport, describe, load, open_source
from misfm.weights.hub import SCHEME
from misfm.weights.published import BUILTIN, notices

Transferred = tuple[TransferReport, list[str]]
"""What a network took of weights, and what to know of them, in sentences."""


def open_weights(source: str | None) -> Opened | None:
    """Open the weights to start from, if any; they are read here and nowhere else."""
    return None if source is None or source == NO_WEIGHTS else open_source(source)


@dataclass(frozen=True)
class Start:
    """Where a fine-tuning starts from.

    Attributes:
        settings: in which that is not open.
        weights: opened; None from scratch.
        reasons: a sentence on what was chosen, if anything was.
    """

    settings: FinetuneSettings
    weights: Opened | None
    reasons: tuple[str, ...] = ()


def choose_start(settings: FinetuneSettings, dataset: Dataset, opened: Opened | None = None) -> Start:
    """Open the given weights, or choose between those that ship with misfm and scratch, and log why.

    Args:
        settings: of the fine-tuning.
        dataset: to fine-tune on.
        opened: the given weights, where they were opened before.

    Raises:
        WeightsError: weights that cannot be read.
    """
    if settings.weights is not None:
        return Start(settings, opened or open_weights(settings.weights))
    builtin = open_source(BUILTIN)
    source, reason = plan_weights(settings, len(dataset.channel_names), present_machine(), builtin)
    logger.info("%s", reason)
    chosen = settings.model_copy(update={"weights": source})
    return Start(chosen, None if source == NO_WEIGHTS else builtin, (reason,))


def start_from(
    model: nn.Module,
    source: str | None,
    weights: Opened | None,
    transfer: Literal["all", "encoder", "backbone"],
    channel_names: Sequence[str] = (),
) -> Transferred | None:
    """Load the weights to start from, if any.

    Args:
        model: filled in place.
        source: the weights as given.
        weights: the same, opened.
        transfer: what of them, see :func:`misfm.weights.load`.
        channel_names: of the images, where there are several; those of the weights are put into their order.
    """
    if source is None or weights is None:
        return None
    report = load(model, weights, transfer=transfer)
    notice = order_channels(model, weights.info.channel_names if weights.info else (), channel_names)
    return report, [*notices(source, describe(weights)), *([notice] if notice else [])]


def order_channels(model: nn.Module, theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Give each image channel what the weights have learnt for the one of its name.

    Args:
        model: filled with the weights.
        theirs: names of the channels that the weights were trained on; empty where they do not say.
        ours: of the images.

    Returns:
        A sentence on what was done, or on names that are not the same; empty where there is nothing to say.
    """
    if len(theirs) != len(ours) or same_names(theirs, ours):
        return ""
    what = f"The weights were trained on {', '.join(theirs)}, and the images have {', '.join(ours)}"
    known, wanted = plain_names(theirs), plain_names(ours)
    if sorted(known) != sorted(wanted) or len(set(known)) < len(known):
        return f"{what}: channels are taken in their order."
    backbone = cast(Backbone, model.get_submodule("backbone"))
    stem = backbone.get_parameter(backbone.stem_weight)
    with torch.no_grad():
        stem.copy_(stem[:, [known.index(name) for name in wanted]].clone())
    return f"{what}: they were put into that order."


def tell_transfer(out: Path, transferred: tuple[TransferReport, list[str]] | None) -> None:
    """Log what was transferred, and keep it in the run folder."""
    if transferred is not None:
        report, warnings = transferred
        write_text(out / "transfer.txt", "\n".join([str(report), *warnings, ""]))
        logger.info("%s", report)
        for warning in warnings:
            logger.warning("%s", warning)


def inherited_licence(source: str | None, weights: Opened | None) -> str:
    """What the licence of the weights at the start, if any, asks to be passed on.

    Weights that are published are named; where others lie is nobody's business.
    """
    if source is None or weights is None:
        return "unknown"
    licence = weights.info.licence if weights.info else "unknown"
    is_named = source == BUILTIN or source.startswith(SCHEME) or not Path(source).exists()
    return f"starts from {source if is_named else 'other weights'}: {licence}"


def scans_seen(weights: Opened | None) -> tuple[str, ...]:
    """Short fingerprints of the scans that the weights at the start, if any, say they have learnt from."""
    return () if weights is None else weights.scans
