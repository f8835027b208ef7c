r"""Our own task: restore what was masked, say where in the body a voxel lies, segment generated anatomy.

Half of the volumes of a batch are scans and half are generated anatomy, whose label maps are known. Two
patches of each volume go through encoder and decoder in one pass, and from it come for each voxel :math:`v`
its intensity :math:`h(v)`, a position :math:`f(v) \in \mathbb{R}^3` and the classes of the generator:

.. math::
    L = L_{restoration} + L_{position} + L_{segmentation} .

*Restoration* (scans): blocks of voxels are hidden, and the mean squared error of :math:`h` over them is
minimised (masked autoencoder, He et al., arXiv 2111.06377).

*Position* (all volumes): the volume knows the true position :math:`g(v)` in millimetres from its own first
voxel, which means another place in each patient; so :math:`f` is compared with :math:`g` up to one unknown
shift for each volume:

.. math::
    L_{position} = \min_t \operatorname{mean}_v \lVert f(v) - g(v) - t \rVert^2 .

The minimum is the variance of :math:`f - g` over both patches. It is small only if the difference of any
two predictions is the distance between the two places, so :math:`f` has to learn one map of the body that
fits all patients: which side is left, what lies above what. Every scan carries these labels for free, and
they are the opposite of what mirroring teaches. Relative position of two patches as one vector: Lei et al.,
arXiv 2012.07043.

*Segmentation* (generated anatomy, under varied intensities): Dice and cross-entropy, as in the fine-tuning
that follows. It teaches the form of the answer within minutes (docs/decisions.md). That segmenting synthetic
shapes transfers to scans: Billot et al., SynthSeg, arXiv 2107.09559.

The combination is ours. Fits every network with a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor, nn

from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.batches import Batch, Placement, sent
from misfm.losses import IGNORE, batch_mean, dice_score, masked_mean, segmentation_loss
from misfm.models.base import Backbone, SegmentationModel
from misfm.pretext.anatomy import STRONG_INTENSITIES
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.pretext.masks import grid_size, sample_blocks, spread_blocks
from misfm.seeding import draw_uniform
from misfm.settings import PositiveShape, Probability
from misfm.synthesis.structures import NUM_STRUCTURES
from misfm.volume import Shape

UNIT_MM = 100.0
"""Length in which positions are predicted, so that they are of the order of one."""


@dataclass(frozen=True, kw_only=True)
class MaskedPlaces(Batch):
    """``targets`` are the whole patches; all tensors hold the two patches of a volume one after the other.

    Attributes:
        masked: (2B, D, H, W) bool, voxels to restore; padding is not among them.
        real: (2B, D, H, W) bool, voxels that are not padding.
        position: (2B, 3, D, H, W), g in units of 100 mm.
        labels: (2B, D, H, W) int64, label maps of generated volumes; IGNORE all over in scans.
    """

    masked: Tensor
    real: Tensor
    position: Tensor
    labels: Tensor


@PRETEXTS.register("misfm")
class RestorePlaceSegment(PretextTask):
    """Restoration, position and segmentation in one pass; see the module's docstring."""

    num_patches: ClassVar[int] = 2
    mixes_generated: ClassVar[bool] = True

    mask_ratio: tuple[Probability, Probability] = (0.3, 0.7)
    """Least and largest share of masked blocks, drawn for each patch of a scan."""
    block_size: PositiveShape = (8, 8, 8)
    """Voxels of a block along (D, H, W)."""
    position_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the position loss, beside 1 for the other two."""
    unit_mm: PositiveFloat = UNIT_MM
    """Millimetres in which positions are counted."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the cross-entropy over structures, as in fine-tuning."""
    intensities: IntensitySettings = STRONG_INTENSITIES
    """How intensities of generated volumes are varied."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> MaskedPlaces:
        """Mask both patches of each scan, and vary those of each generated volume; see the base class."""
        images = patches.flatten(0, 1)
        real = placement.real(patch_size, images.device).flatten(0, 1)
        grid = grid_size(patch_size, self.block_size)
        ratios = [draw_uniform(*self.mask_ratio, generator) for _ in images]
        blocks = torch.cat([sample_blocks(1, grid, ratio, generator) for ratio in ratios])
        plan = sample_intensities(len(images), self.intensities, generator)
        labels = known_labels(placement, real)
        is_scan = (labels == IGNORE).flatten(1).all(1).view(-1, 1, 1, 1)
        hidden = spread_blocks(sent(blocks, images.device), self.block_size, patch_size) & is_scan
        varied = torch.where(is_scan[:, None], images, apply_intensities(images, plan))
        return MaskedPlaces(
            inputs=varied.masked_fill(hidden[:, None], 0.0),
            targets=images,
            masked=hidden & real,
            real=real,
            position=positions(placement, patch_size, images.device).flatten(0, 1) / self.unit_mm,
            labels=labels,
        )

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Intensities, three coordinates, and the structures with background for each voxel."""
        return SegmentationModel(backbone, backbone.in_channels + 3 + NUM_STRUCTURES + 1)

    def parts_of(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return h (B, C, D, H, W), f (B, 3, D, H, W) and the logits of classes in float32."""
        others = 3 + NUM_STRUCTURES + 1
        sizes = [outputs.shape[1] - others, 3, others - 3]
        image, place, logits = torch.split(outputs.float(), sizes, dim=1)
        return image, place, logits

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Squared errors over masked voxels and of positions, Dice and cross-entropy of structures."""
        assert isinstance(batch, MaskedPlaces)
        image, place, logits = self.parts_of(outputs)
        return {
            "reconstruction": masked_mean((image - batch.targets).square(), batch.masked),
            "position": self.position_weight * self.position_error(place, batch),
            **segmentation_loss(logits, batch.labels, balance=self.class_balance),
        }

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """Errors beside those of the scans' mean and of one position for everything, and Dice of structures.

        ``position_mm`` is the root mean square distance, ``position_mm_chance`` that of the best constant.
        """
        assert isinstance(batch, MaskedPlaces)
        image, place, logits = self.parts_of(outputs.detach())
        scans = batch.masked.flatten(1).any(1).view(-1, 1, 1, 1)  # generated volumes look otherwise
        mean = masked_mean(batch.targets, batch.real & ~batch.masked & scans)
        constant = torch.zeros_like(place)
        return {
            "masked_error": float(masked_mean((image - batch.targets).square(), batch.masked)),
            "mean_error": float(masked_mean((mean - batch.targets).square(), batch.masked)),
            "position_mm": self.unit_mm * float(3 * self.position_error(place, batch)) ** 0.5,
            "position_mm_chance": self.unit_mm * float(3 * self.position_error(constant, batch)) ** 0.5,
            **dice_score(logits, batch.labels),
        }

    def position_error(self, place: Tensor, batch: MaskedPlaces) -> Tensor:
        """Variance of f - g over the real voxels of each volume, averaged over axes and volumes."""
        weight = batch.real.reshape(len(place) // 2, 1, -1).float()  # both patches of a volume in one row
        weight = weight / weight.sum(2, keepdim=True).clamp(min=1)
        pairs = (place - batch.position).view(len(weight), 2, 3, -1)
        residual = pairs.transpose(1, 2).flatten(2)  # (B, 3, voxels)
        mean = (residual * weight).sum(2, keepdim=True)
        return batch_mean(((residual - mean).square() * weight).sum(2))


def positions(placement: Placement, size: Shape, device: torch.device) -> Tensor:
    """Millimetres (B, N, 3, D, H, W) along (D, H, W) from the first voxel of the volume to each voxel."""
    sides = (torch.arange(side, dtype=torch.float32, device=device) for side in size)
    ticks = torch.stack(torch.meshgrid(*sides, indexing="ij"))
    spacing, origin = (sent(each, device) for each in (placement.spacing, placement.origin))
    return origin[..., None, None, None] + ticks * spacing[..., None, None, None]


def known_labels(placement: Placement, real: Tensor) -> Tensor:
    """Label maps (2B, D, H, W) on the device of ``real``; IGNORE where there are none, and in padding."""
    if placement.labels is None:
        return torch.full(real.shape, IGNORE, device=real.device)
    return sent(placement.labels.flatten(0, 1), real.device).masked_fill(~real, IGNORE)
