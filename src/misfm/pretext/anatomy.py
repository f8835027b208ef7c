"""Segmentation of generated anatomy: a pretext that needs no scans at all.

Volumes and label maps come from the phantom generator (``misfm pretrain --store phantom``), so the network
learns what a segmentation of CT-like organs is before it sees a patient. Intensities are varied as in
fine-tuning, more often, for the generator's own look not to be learnt. That segmenting synthetic shapes
transfers to real scans: Billot et al., SynthSeg, arXiv 2107.09559. Fits every network with a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from misfm.errors import ConfigError
from misfm.intensities import IntensitySettings, apply_intensities, sample_intensities
from misfm.losses import IGNORE, hard_dice, segmentation_loss
from misfm.models.base import Backbone, SegmentationModel, Shape
from misfm.pretext.base import PRETEXTS, Placement, PretextBatch, PretextTask

STRONG_INTENSITIES = IntensitySettings(
    p_noise=0.3, p_blur=0.3, p_low_resolution=0.3, p_brightness=0.5, p_contrast=0.5, p_gamma=0.5
)
"""More often than in fine-tuning: the generator's own look is not to be learnt."""


@PRETEXTS.register("phantom-anatomy")
class PhantomAnatomy(PretextTask):
    """Segment the organs of generated scans; see the module's docstring."""

    needs_labels: ClassVar[bool] = True

    num_labels: Annotated[int, Field(ge=1)] = 5
    """Organs of the generator."""
    intensities: IntensitySettings = STRONG_INTENSITIES
    """How intensities are varied."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> PretextBatch:
        """Vary the intensities of each patch; see the base class.

        Raises:
            ConfigError: the volumes have no label maps.
        """
        if placement.labels is None:
            raise ConfigError("'phantom-anatomy' needs volumes with label maps: give --store phantom.")
        images = patches[:, 0]
        plan = sample_intensities(len(images), self.intensities, generator)
        real = placement.real(patch_size)[:, 0]
        targets = placement.labels[:, 0].masked_fill(~real, IGNORE)
        return PretextBatch(apply_intensities(images, plan), targets.to(images.device))

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Segmentation into the organs and background."""
        return SegmentationModel(backbone, self.num_labels + 1)

    def loss(self, outputs: Tensor, batch: PretextBatch) -> Mapping[str, Tensor]:
        """Dice over the organs, and cross-entropy."""
        return segmentation_loss(outputs, batch.targets)

    def score(self, outputs: Tensor, batch: PretextBatch) -> Mapping[str, float]:
        """Mean Dice of the organs, and what guessing by their shares would reach."""
        return dice_score(outputs.detach(), batch.targets)


def dice_score(logits: Tensor, labels: Tensor) -> Mapping[str, float]:
    """Mean Dice of the organs, and what guessing by their shares would reach; nothing where none is known."""
    known = labels[labels != IGNORE]
    if not len(known):
        return {}
    shares = torch.bincount(known, minlength=logits.shape[1])[1:] / len(known)
    present = shares[shares > 0]
    return {
        "pretext_dice": float(hard_dice(logits, labels)[1:].nanmean()),
        "chance_dice": float(present.mean()) if len(present) else 0.0,
    }
