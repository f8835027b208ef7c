"""What is trained for: a pretext task on unlabelled patches, or segmentation of labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from misfm.data.augment import AugmentSettings, apply_augmentation, sample_augmentation
from misfm.losses import hard_dice, segmentation_loss
from misfm.models.base import Shape
from misfm.pretext.base import Placement, PretextBatch, PretextTask
from misfm.volume import FloatTriple


@dataclass(frozen=True)
class PretextObjective:
    """Runs a pretext task on batches of :class:`misfm.data.patches.UnlabelledPatches`."""

    task: PretextTask
    patch_size: Shape

    def prepare(self, batch: tuple[Tensor, ...], generator: Generator) -> PretextBatch:
        """Let the task make inputs and targets."""
        patches, *where = batch
        placement = Placement(*(tensor.cpu() for tensor in where))
        return self.task.prepare(patches, placement, self.patch_size, generator)

    def loss(self, outputs: Any, batch: PretextBatch) -> Mapping[str, Tensor]:
        """Return the task's terms."""
        return self.task.loss(outputs, batch)

    def score(self, outputs: Any, batch: PretextBatch) -> Mapping[str, float]:
        """Return the task's own score."""
        return self.task.score(outputs, batch)

    def after_step(self, model: nn.Module) -> None:
        """Let the task do what follows an optimiser step."""
        self.task.after_step(model)


@dataclass(frozen=True)
class SegmentationObjective:
    """Dice and cross-entropy on augmented batches of :class:`misfm.data.patches.LabelledPatches`.

    Attributes:
        augmentation: how strongly and how often.
        patch_size: voxels along (D, H, W) the network sees: the middle of the raw patches.
        spacing: mm per voxel along (D, H, W).
    """

    augmentation: AugmentSettings
    patch_size: Shape
    spacing: FloatTriple

    def prepare(self, batch: tuple[Tensor, Tensor], generator: Generator) -> PretextBatch:
        """Augment image and label together."""
        image, label = batch
        shape = (*image.shape[:2], *self.patch_size)
        plan = sample_augmentation(shape, self.augmentation, generator, spacing=self.spacing)
        return PretextBatch(*apply_augmentation(image, label, plan))

    def loss(self, outputs: Tensor | list[Tensor], batch: PretextBatch) -> Mapping[str, Tensor]:
        """Dice over the labels without background, and cross-entropy."""
        return segmentation_loss(outputs, batch.targets)

    def score(self, outputs: Tensor | list[Tensor], batch: PretextBatch) -> Mapping[str, float]:
        """Mean Dice of the labels in this (augmented, training) batch."""
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        return {"train_dice": float(torch.nanmean(hard_dice(logits.detach(), batch.targets)[1:]))}

    def after_step(self, model: nn.Module) -> None:
        """Nothing follows a step of supervised training."""
