"""What is trained for: a pretext task on unlabelled patches, or segmentation of labelled ones.

Each sample of a batch is prepared alone, by draws of its own; so are those that one of several processes
(:mod:`misfm.world`) has of it. Losses and scores are those of the whole batch, in all processes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from misfm import world
from misfm.augment.carvemix import apply_carvemix, sample_carvemix
from misfm.augment.labelled import AugmentSettings, apply_augmentation, sample_augmentation
from misfm.batches import Batch, RawPatches, Share, sent
from misfm.data.label_scheme import LabelScheme
from misfm.data.patches import LabelledBatch
from misfm.losses import hard_dice, hard_region_dice, merge_unannotated, region_loss, segmentation_loss
from misfm.models.heads import finest
from misfm.pretext.base import PretextTask
from misfm.seeding import Draws
from misfm.volume import FloatTriple, Shape


@dataclass(frozen=True, kw_only=True)
class ComparedBatch(Batch):
    """A share of a batch whose samples meet in the loss.

    Attributes:
        whole: all samples of the batch.
    """

    whole: Batch


@dataclass(frozen=True)
class PretextObjective:
    """Runs a pretext task on batches of :class:`misfm.data.patches.UnlabelledPatches`."""

    task: PretextTask
    patch_size: Shape

    def prepare(self, batch: RawPatches, draws: Draws) -> Batch:
        """Let the task make inputs and targets."""
        if self.task.samples_meet == "nowhere":
            return self.prepare_each(batch, draws)
        if world.size() > 1:
            batch = batch._replace(read=None).each(world.gathered)
        whole = self.task.prepare(batch.patches, batch.placement, self.patch_size, draws.of_batch())
        if world.size() == 1:
            return whole
        own = whole.rows(Share(world.rank(), world.size()))
        if self.task.samples_meet == "in inputs":
            return own
        return ComparedBatch(own.inputs, own.targets, own.context, whole=whole)

    def prepare_each(self, batch: RawPatches, draws: Draws) -> Batch:
        """Let the task make inputs and targets of one sample after the other."""
        placement, first = batch.placement, world.rank() * len(batch.patches)
        parts = [
            self.task.prepare(
                batch.patches[row : row + 1],
                placement.rows(slice(row, row + 1)),
                self.patch_size,
                draws.of_sample(first + row),
            )
            for row in range(len(batch.patches))
        ]
        return type(parts[0]).joined(parts)

    def loss(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the task's terms."""
        if not isinstance(batch, ComparedBatch):
            return self.task.loss(outputs, batch)
        outputs = all_rows(outputs)
        with world.alone():
            return self.task.loss(outputs, batch.whole)

    def score(self, outputs: Any, batch: Batch) -> Mapping[str, float]:
        """Return the task's own score."""
        if not isinstance(batch, ComparedBatch):
            return self.task.score(outputs, batch)
        outputs = all_rows(outputs)
        with world.alone():
            return self.task.score(outputs, batch.whole)

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

    def prepare(self, batch: LabelledBatch, draws: Draws) -> SegmentationBatch:
        """Mix samples, then augment image and label together."""
        image, *others = self.mixed(batch, draws)
        label, annotated = (None if each is None else sent(each, image.device) for each in others)
        assert label is not None
        first = world.rank() * len(image)
        images, labels = [], []
        for row in range(len(image)):
            plan = sample_augmentation(
                (1, image.shape[1], *self.patch_size),
                self.augmentation,
                draws.of_sample(first + row),
                spacing=self.spacing,
            )
            one, its = apply_augmentation(image[row : row + 1], label[row : row + 1], plan)
            images.append(one)
            labels.append(its)
        return SegmentationBatch(torch.cat(images), torch.cat(labels), annotated=annotated)

    def mixed(self, batch: LabelledBatch, draws: Draws) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put organs into other samples of the batch, from those of all processes.

        In a mixed sample, a label is annotated that was in both; samples that would be left without any are
        not mixed. Label maps and what was annotated are on the CPU, wherever the image is.

        Returns:
            Image, label and what was annotated, of this process's samples.
        """
        image, label, *masks = batch
        if self.augmentation.p_carvemix == 0:
            return image, label, masks[0] if masks else None
        own = Share(world.rank(), world.size()).of(len(image) * world.size())
        image, label, *masks = (world.gathered(each) for each in batch)
        mix = sample_carvemix(len(image), self.augmentation.p_carvemix, draws.of_batch())
        annotated = None
        if masks:
            shared = masks[0] & masks[0][mix.donor]
            alone = torch.arange(len(image))
            mix = replace(
                mix, donor=torch.where(shared[:, -len(self.scheme.values) :].any(1), mix.donor, alone)
            )
            annotated = (masks[0] & masks[0][mix.donor])[own]
        image, label = apply_carvemix(image, label, mix, self.spacing)
        return image[own], label[own], annotated

    def loss(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Dice over the labels without background, and cross-entropy."""
        assert isinstance(batch, SegmentationBatch)
        target, annotated = batch.targets, batch.annotated
        if self.scheme.has_regions:
            regions = sent(self.scheme.membership(), target.device)
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


def all_rows(outputs: Any) -> Any:
    """Return what the networks of all processes answered: each tensor in lists, tuples and dicts gathered."""
    if isinstance(outputs, Tensor):
        return world.gathered(outputs)
    if isinstance(outputs, Mapping):
        return {name: all_rows(value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        values = [all_rows(value) for value in outputs]
        return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)
    return outputs
