r"""Segmentation of generated anatomy: a pretext that needs no scans at all.

Volumes and label maps come from the phantom generator (``misfm pretrain --store phantom``), so the network
learns what a segmentation of a CT is before it sees a patient. For the generator's own look not to
be learnt, half of the patches are recoloured: each structure :math:`k` is made lighter or darker as a whole,

.. math::
    x'(v) = x(v) + \sum_u w(v - u) \, c_{y(u)}, \qquad c_k \sim N(0, \sigma^2),

so that it is told less by its intensity and more by its shape and place. Background, k = 0, is shifted as
well; w, which is 1/4, 1/2, 1/4 along each axis, is the partial volume at borders. Then intensities are
varied as in fine-tuning, more often. That segmenting synthetic shapes of any contrast transfers to real
scans: Billot et al., SynthSeg, arXiv 2107.09559. Fits every network with a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.batches import Batch, Placement, sent
from misfm.errors import ConfigError
from misfm.losses import IGNORE, dice_score, segmentation_loss
from misfm.models.base import Backbone, SegmentationModel
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.settings import Probability
from misfm.synthesis.appearance import recolour
from misfm.synthesis.structures import NUM_STRUCTURES
from misfm.volume import Shape

STRONG_INTENSITIES = IntensitySettings(
    p_noise=0.3, p_blur=0.3, p_low_resolution=0.3, p_brightness=0.5, p_contrast=0.5, p_gamma=0.5
)
"""More often than in fine-tuning: the generator's own look is not to be learnt."""


@PRETEXTS.register("phantom-anatomy")
class PhantomAnatomy(PretextTask):
    """Segment the structures of generated scans; see the module's docstring."""

    needs_labels: ClassVar[bool] = True

    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the cross-entropy, as in fine-tuning."""
    p_recolour: Probability = 0.5
    """Share of patches whose structures get other intensities."""
    recolour: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the shift of a structure, in normalised intensity: 80 HU in a window of 800."""
    intensities: IntensitySettings = STRONG_INTENSITIES
    """How intensities are varied."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Vary the intensities of each patch; see the base class.

        Raises:
            ConfigError: the volumes have no label maps.
        """
        if placement.labels is None:
            raise ConfigError("'phantom-anatomy' needs volumes with label maps: give --store phantom.")
        images = patches[:, 0]
        shifts = self.recolour * torch.randn(len(images), NUM_STRUCTURES + 1, generator=generator)
        shifts *= torch.rand(len(images), 1, generator=generator) < self.p_recolour
        plan = sample_intensities(len(images), self.intensities, generator)
        real = placement.real(patch_size, images.device)[:, 0]
        labels = sent(placement.labels[:, 0], images.device)
        shift = recolour(labels, shifts) * real
        varied = apply_intensities(images + shift[:, None], plan)
        return Batch(varied, labels.masked_fill(~real, IGNORE))

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Segmentation into the structures and background."""
        return SegmentationModel(backbone, NUM_STRUCTURES + 1)

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Dice over the structures, and cross-entropy."""
        return segmentation_loss(outputs, batch.targets, balance=self.class_balance)

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """Mean Dice of the structures, and what guessing by their shares would reach."""
        return dice_score(outputs.detach(), batch.targets)
