r"""Our own task: restore what was masked, and say where in the body each voxel lies.

Two patches of one volume lose blocks of voxels. From one pass of encoder and decoder come, for each voxel
:math:`v`, its intensity and a position :math:`f(v) \in \mathbb{R}^3`. The scan knows the true position
:math:`g(v)` in millimetres from its own first voxel, which means another place in each patient; so :math:`f`
is compared with :math:`g` up to one unknown shift for each volume:

.. math::
    L_{position} = \min_t \operatorname{mean}_v \lVert f(v) - g(v) - t \rVert^2 .

The minimum is the variance of :math:`f - g` over both patches. It is small only if the difference of any
two predictions is the distance between the two places, so :math:`f` has to learn one map of the body that
fits all patients: which side is left, what lies above what. Every scan carries these labels for free, and
they are the opposite of what mirroring teaches.

Relative position of two patches as one vector: Lei et al., arXiv 2012.07043. Masked reconstruction: He et
al., arXiv 2111.06377. Their dense combination is ours. Fits every network with a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor, nn

from misfm.losses import masked_mean
from misfm.models.base import Backbone, SegmentationModel, Shape, image_channels
from misfm.pretext.base import PRETEXTS, Placement, PretextBatch, PretextTask, Probability
from misfm.pretext.masks import grid_size, sample_blocks, spread_blocks
from misfm.seeding import draw_uniform
from misfm.settings import Size

UNIT_MM = 100.0
"""Length in which positions are predicted, so that they are of the order of one."""


@dataclass(frozen=True, kw_only=True)
class MaskedPlaces(PretextBatch):
    """``targets`` are the whole patches; all tensors hold the two patches of a volume one after the other.

    Attributes:
        masked: (2B, D, H, W) bool, voxels to restore; padding is not among them.
        real: (2B, D, H, W) bool, voxels that are not padding.
        position: (2B, 3, D, H, W), g in units of 100 mm.
    """

    masked: Tensor
    real: Tensor
    position: Tensor


@PRETEXTS.register("misfm")
class MaskedPosition(PretextTask):
    """Masked reconstruction and dense anatomical position; see the module's docstring."""

    num_patches: ClassVar[int] = 2

    mask_ratio: tuple[Probability, Probability] = (0.3, 0.7)
    """Least and largest share of masked blocks, drawn for each patch."""
    block_size: Size = (8, 8, 8)
    """Voxels of a block along (D, H, W)."""
    position_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the position loss, beside 1 for the reconstruction."""
    unit_mm: PositiveFloat = UNIT_MM
    """Millimetres in which positions are counted."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> MaskedPlaces:
        """Mask both patches of each volume; see the base class."""
        images = patches.flatten(0, 1)
        real = placement.real(patch_size).flatten(0, 1).to(images.device)
        grid = grid_size(patch_size, self.block_size)
        ratios = [draw_uniform(*self.mask_ratio, generator) for _ in images]
        blocks = torch.cat([sample_blocks(1, grid, ratio, generator) for ratio in ratios])
        hidden = spread_blocks(blocks.to(images.device), self.block_size, patch_size)
        return MaskedPlaces(
            inputs=images.masked_fill(hidden[:, None], 0.0),
            targets=images,
            masked=hidden & real,
            real=real,
            position=positions(placement, patch_size).flatten(0, 1).to(images.device) / self.unit_mm,
        )

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Intensities and three coordinates for each voxel."""
        return SegmentationModel(backbone, image_channels(backbone) + 3)

    def loss(self, outputs: Tensor, batch: PretextBatch) -> Mapping[str, Tensor]:
        """Squared errors: of intensity over masked voxels, of position over all real ones."""
        assert isinstance(batch, MaskedPlaces)
        image, place = torch.split(outputs.float(), [batch.targets.shape[1], 3], dim=1)
        return {
            "reconstruction": masked_mean((image - batch.targets).square(), batch.masked),
            "position": self.position_weight * self.position_error(place, batch),
        }

    def score(self, outputs: Tensor, batch: PretextBatch) -> Mapping[str, float]:
        """Errors beside those of the mean intensity and of one position for everything.

        ``position_mm`` is the root mean square distance, ``position_mm_chance`` that of the best constant.
        """
        assert isinstance(batch, MaskedPlaces)
        image, place = torch.split(outputs.detach().float(), [batch.targets.shape[1], 3], dim=1)
        visible = batch.real & ~batch.masked
        mean = masked_mean(batch.targets, visible)
        constant = torch.zeros_like(place)
        return {
            "masked_error": float(masked_mean((image - batch.targets).square(), batch.masked)),
            "mean_error": float(masked_mean((mean - batch.targets).square(), batch.masked)),
            "position_mm": self.unit_mm * float(3 * self.position_error(place, batch)) ** 0.5,
            "position_mm_chance": self.unit_mm * float(3 * self.position_error(constant, batch)) ** 0.5,
        }

    def position_error(self, place: Tensor, batch: MaskedPlaces) -> Tensor:
        """Variance of f - g over the real voxels of each volume, averaged over axes and volumes."""
        weight = batch.real.reshape(len(place) // 2, 1, -1).float()  # both patches of a volume in one row
        weight = weight / weight.sum(2, keepdim=True).clamp(min=1)
        pairs = (place - batch.position).view(len(weight), 2, 3, -1)
        residual = pairs.transpose(1, 2).flatten(2)  # (B, 3, voxels)
        mean = (residual * weight).sum(2, keepdim=True)
        return ((residual - mean).square() * weight).sum(2).mean()


def positions(placement: Placement, size: Shape) -> Tensor:
    """Millimetres (B, N, 3, D, H, W) along (D, H, W) from the first voxel of the volume to each voxel."""
    ticks = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    offsets = torch.stack(ticks) * placement.spacing[..., None, None, None]
    return placement.origin[..., None, None, None] + offsets
