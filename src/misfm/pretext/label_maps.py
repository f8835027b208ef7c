r"""Segmentation of label maps dressed in random appearances: shapes of people, and images of nobody.

The volumes are label maps (``misfm pretrain --store labels:DIR``), people's or generated ones. A patch is
turned, scaled and bent at random, left and right exchanged in half of them together with their labels, and
then drawn with a contrast, a texture, a bias field and a resolution of its own
(:mod:`misfm.synthesis.appearance`). Nothing is ever seen twice, and no scan at all. Generated anatomy
(``--store phantom:800+labels:DIR``) fills half of each batch; it mostly keeps the look of CT that it was
generated with, structures lighter or darker as in :mod:`misfm.pretext.anatomy`. One head has the classes of
both; each patch is judged by those of its own kind. Billot et al., SynthSeg, arXiv 2107.09559; Dey et al.,
anatomix, arXiv 2411.02372. Fits every network with a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from misfm import world
from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.augment.labelled import AugmentSettings, apply_augmentation, sample_augmentation
from misfm.batches import Batch, Placement, sent
from misfm.errors import ConfigError
from misfm.losses import IGNORE, batch_ratio, dice_score, segmentation_loss
from misfm.models.base import Backbone, SegmentationModel
from misfm.models.heads import finest
from misfm.pretext.anatomy import STRONG_INTENSITIES
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.settings import Probability, Range
from misfm.synthesis.appearance import (
    AppearanceSettings,
    apply_appearance,
    recolour,
    sample_appearance,
)
from misfm.synthesis.label_table import FIRST, LabelTable
from misfm.synthesis.structures import NUM_STRUCTURES
from misfm.volume import Shape, triple

UNVARIED = AugmentSettings(p_noise=0, p_blur=0, p_low_resolution=0, p_brightness=0, p_contrast=0, p_gamma=0)
"""Intensities come last, for images that are drawn after labels were bent."""
MARGIN = 0.3
"""Voxels read beyond each side of a patch over that side, so that what is turned and shrunk has corners."""


@dataclass(frozen=True, kw_only=True)
class DressedBatch(Batch):
    """Drawn patches with their label maps.

    Attributes:
        is_people: (B,) bool, on the CPU, people's label maps; the others are generated.
    """

    is_people: Tensor


@PRETEXTS.register("label-maps")
class LabelMaps(PretextTask):
    """Segment the structures of label maps in drawn images; see the module's docstring."""

    needs_labels: ClassVar[bool] = True
    draws_people: ClassVar[bool] = True

    table: LabelTable = LabelTable()
    """What the values of the label maps mean; filled in from the store."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the cross-entropy, as in fine-tuning."""
    p_dressed: Probability = 0.3
    """Share of patches of generated anatomy that are drawn anew, too; of people's, all are."""
    p_recolour: Probability = 0.5
    """Share of the others whose structures get other intensities."""
    recolour: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the shift of a structure, in normalised intensity: 80 HU in a window of 800."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each of (D, H, W), degrees."""
    scale: Range = (0.8, 1.3)
    """Magnification, ratio."""
    p_elastic: Probability = 0.5
    """Share of patches deformed elastically."""
    appearance: AppearanceSettings = AppearanceSettings()
    """How images are drawn."""
    intensities: IntensitySettings = STRONG_INTENSITIES
    """How intensities are varied in the end."""

    def margin(self, patch_size: Shape) -> Shape:
        """Voxels read beyond each side of a patch; see the base class."""
        return triple(math.ceil(MARGIN * side) for side in patch_size)

    def source_size(self, patch_size: Shape) -> Shape:
        """A patch with its margins."""
        return triple(side + 2 * more for side, more in zip(patch_size, self.margin(patch_size), strict=True))

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Bend each patch, and draw it; see the base class.

        Raises:
            ConfigError: the volumes have no label maps.
        """
        if placement.labels is None:
            raise ConfigError("'label-maps' needs volumes with label maps: give --store labels:DIR.")
        is_people = placement.labels.flatten(1).amax(1) >= FIRST
        images, labels, real = self.bend(patches, placement, patch_size, is_people, generator)
        look = sample_appearance((len(labels), *patch_size), self.table, self.appearance, generator)
        shifts = self.recolour * torch.randn(len(labels), look.means.shape[1], generator=generator)
        shifts *= torch.rand(len(labels), 1, generator=generator) < self.p_recolour
        is_dressed = is_people | (torch.rand(len(labels), generator=generator) < self.p_dressed)
        strong = sample_intensities(len(labels), self.intensities, generator)
        plain = images + (recolour(labels, shifts) * real)[:, None]
        if is_dressed.any():
            drawn = apply_appearance(labels, real, look).to(images)
            keep = sent(is_dressed.view(-1, 1, 1, 1, 1), images.device)
            plain = torch.where(keep, drawn.expand_as(plain), plain)
            thin = torch.where(is_dressed[:, None], look.resolution, 1.0)
            strong = replace(strong, resolution=torch.minimum(strong.resolution, thin))
        classes = sent(torch.tensor(self.table.classes()), images.device)
        targets = classes[labels].masked_fill(~real, IGNORE)
        return DressedBatch(apply_intensities(plain, strong), targets, is_people=is_people)

    def bend(
        self,
        patches: Tensor,
        placement: Placement,
        patch_size: Shape,
        is_people: Tensor,
        generator: Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turn, scale, bend and mirror; returns images, labels (B, D, H, W) and what of them is seen."""
        assert placement.labels is not None
        source = self.source_size(patch_size)
        geometry = UNVARIED.model_copy(
            update={
                "p_spatial": 0.8,
                "rotation_degrees": self.rotation_degrees,
                "scale": self.scale,
                "p_elastic": self.p_elastic,
            }
        )
        plan = sample_augmentation((len(patches), 1, *patch_size), geometry, generator)
        real = placement.real(source)[:, 0]
        marked = torch.where(real, placement.labels[:, 0] + 1, 0)  # 0 lies outside, there as here
        images, bent = apply_augmentation(patches[:, 0], sent(marked, patches.device), plan)
        labels, real = (bent - 1).clamp(min=0), bent > 0
        if self.table.names and not self.table.unpaired():
            mirror = is_people & (torch.rand(len(labels), generator=generator) < 0.5)
            rows = sent(mirror.nonzero()[:, 0], labels.device)
            other = sent(torch.tensor(self.table.mirrored()), labels.device)
            labels[rows] = other[labels[rows].flip(-1)]
            real[rows] = real[rows].flip(-1)
        return images, labels, real

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Segmentation into all structures and background."""
        return SegmentationModel(backbone, self.table.num_classes)

    def loss(self, outputs: Tensor | Sequence[Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Dice over the structures, and cross-entropy; a patch is judged by the classes of its own kind."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        terms: dict[str, Tensor] = {}
        for rows, classes, targets in self.by_source(batch):
            own = [torch.cat([level[rows][:, part] for part in classes], 1) for level in levels]
            share = batch_ratio(levels[0].new_full((), len(rows), dtype=torch.float32), len(batch.inputs))
            for name, term in segmentation_loss(own, targets, balance=self.class_balance).items():
                terms[name] = terms.get(name, term.new_zeros(())) + term * share
        return terms

    def score(self, outputs: Tensor | Sequence[Tensor], batch: Batch) -> Mapping[str, float]:
        """Mean Dice of the structures, and what guessing by their shares would reach."""
        logits = finest(outputs).detach()
        found = [
            dice_score(torch.cat([logits[rows][:, part] for part in classes], 1), targets)
            for rows, classes, targets in self.by_source(batch)
        ]
        scores = [score for score in found if score]
        return {name: sum(score[name] for score in scores) / len(scores) for name in (scores or [{}])[0]}

    def by_source(self, batch: Batch) -> Iterator[tuple[Tensor, list[slice], Tensor]]:
        """Yield generated anatomy and people: rows of the batch, classes of the head, targets among these."""
        assert isinstance(batch, DressedBatch)
        for is_people in (False, True):
            rows = sent((batch.is_people == is_people).nonzero()[:, 0], batch.targets.device)
            targets = batch.targets[rows]
            classes = [slice(FIRST)]
            if is_people:
                classes = [slice(1), slice(FIRST, self.table.num_classes)]
                targets = torch.where(targets > 0, targets - NUM_STRUCTURES, targets)
            if len(rows) or world.size() > 1:  # where another process may have some
                yield rows, classes, targets
