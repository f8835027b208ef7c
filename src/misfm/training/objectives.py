"""What is trained for: a pretext task on unlabelled patches, or segmentation of labelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from misfm.augment.carvemix import apply_carvemix, sample_carvemix
from misfm.augment.labelled import AugmentSettings, apply_augmentation, sample_augmentation
from misfm.batches import Batch, RawPatches
from misfm.data.label_scheme import LabelScheme
from misfm.data.patches import LabelledBatch
from misfm.losses import hard_dice, hard_region_dice, merge_unannotated, region_loss, segmentation_loss
from misfm.models.heads import finest
from misfm.pretext.base import PretextTask
from misfm.volume import FloatTriple, Shape


@dataclass(frozen=True)
class PretextObjective:
    """Runs a pretext task on batches of :class:`misfm.data.patches.UnlabelledPatches`."""

    task: PretextTask
    patch_size: Shape

    def prepare(self, batch: RawPatches, generator: Generator) -> Batch:
        """Let the task make inputs and targets."""
        return self.task.prepare(batch.patches, batch.placement, self.patch_size, generator)

    def loss(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the task's terms."""
        return self.task.loss(outputs, batch)

    def score(self, outputs: Any, batch: Batch) -> Mapping[str, float]:
        """Return the task's own score."""
        return self.task.score(outputs, batch)

    def after_step(self, model: nn.Module) -> None:
        """Nothing follows a step of pretraining."""


@dataclass(frozen=True)
class SegmentationBatch(Batch):
    """Augmented patches and their label maps.

    Attributes:
        annotated: (B, K) bool, which classes or regions were annotated in each sample; None stands for all.
    """

    annotated: Tensor | None = None


@dataclass(frozen=True)
class SegmentationObjective:
    """Dice and cross-entropy on augmented batches of :class:`misfm.data.patches.LabelledPatches`.

    Label maps stay classes through mixing and augmentation; regions are made of them where the loss is taken.

    Attributes:
        scheme: what the labels are.
        augmentation: how strongly and how often.
        patch_size: voxels along (D, H, W) the network sees: the middle of the raw patches.
        spacing: mm per voxel along (D, H, W).
        balance: of classes in the cross-entropy, see :func:`misfm.losses.cross_entropy_loss`.
    """

    augmentation: AugmentSettings
    patch_size: Shape
    spacing: FloatTriple
    scheme: LabelScheme
    balance: float = 0.0

    def prepare(self, batch: LabelledBatch, generator: Generator) -> SegmentationBatch:
        """Mix samples, then augment image and label together.

        In a mixed sample, a label is annotated that was in both; samples that would be left without any are
        not mixed.
        """
        image, label, *masks = batch
        shape = (*image.shape[:2], *self.patch_size)
        plan = sample_augmentation(shape, self.augmentation, generator, spacing=self.spacing)
        mix = sample_carvemix(len(image), self.augmentation.p_carvemix, generator)
        annotated = None
        if masks:
            shared = masks[0].cpu() & masks[0].cpu()[mix.donor]
            alone = torch.arange(len(image))
            mix = replace(
                mix, donor=torch.where(shared[:, -len(self.scheme.values) :].any(1), mix.donor, alone)
            )
            annotated = masks[0] & masks[0][mix.donor.to(image.device)]
        image, label = apply_carvemix(image, label, mix, self.spacing)
        augmented = apply_augmentation(image, label, plan)
        return SegmentationBatch(*augmented, annotated=annotated)

    def loss(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Dice over the labels without background, and cross-entropy."""
        assert isinstance(batch, SegmentationBatch)
        target, annotated = batch.targets, batch.annotated
        if self.scheme.has_regions:
            regions = self.scheme.membership().to(target.device)
            return region_loss(outputs, target, regions, balance=self.balance, annotated=annotated)
        return segmentation_loss(outputs, target, balance=self.balance, annotated=annotated)

    def score(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, float]:
        """Mean Dice of the labels in this (augmented, training) batch."""
        assert isinstance(batch, SegmentationBatch)
        logits, target = finest(outputs).detach(), batch.targets
        if self.scheme.has_regions:
            regions = self.scheme.membership().to(target.device)
            return {"train_dice": float(hard_region_dice(logits, target, regions, batch.annotated).nanmean())}
        if batch.annotated is not None:
            logits, target = merge_unannotated(logits, target, batch.annotated)
        return {"train_dice": float(torch.nanmean(hard_dice(logits, target)[1:]))}

    def after_step(self, model: nn.Module) -> None:
        """Nothing follows a step of supervised training."""
