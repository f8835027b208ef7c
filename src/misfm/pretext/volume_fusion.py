r"""Volume Fusion: segment by how much of another volume was mixed into each block of voxels.

A foreground sub-volume I_f and a background sub-volume I_b are fused voxel by voxel with a coefficient
:math:`\alpha \in \{0, 1/K, …, 1\}`, and the network segments the fused volume into the K + 1 levels:

.. math::
    X = \alpha \odot I_f + (1 - \alpha) \odot I_b, \qquad Y = K \alpha .

No label is needed, yet the task has the form of the one that follows: a 3D class map, from the same encoder
*and decoder*. The two published versions differ in where I_f and I_b come from and in how the level map Y is
drawn; here they are two samplers under one :func:`fuse`.

======================  ====================================  ============================================
                        v1 (arXiv 2306.16925)                 v2 (TIP 2025, doi 10.1109/TIP.2025.3610249)
======================  ====================================  ============================================
I_f and I_b             patches of two volumes of the batch   two random resized crops of one volume
augmentation            flips                                 rescaling, flips, contrast, gamma, inversion
level map Y             10-40 boxes, later ones on top        grid of equal blocks, 70 % of them foreground
intensities             as stored                             [0, 1]
======================  ====================================  ============================================

Departures from the authors' code: a constant patch stays constant (theirs becomes NaN), voxels in which I_f
or I_b is padding or hidden (:class:`misfm.pretext.base.Placement`) count in no loss, and voxels in which they
hardly differ, whose level nobody could tell, can be left out of it, too (``min_difference``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, LongTensor, Tensor, nn

from misfm.augment.mirrors import flip, sample_flips
from misfm.augment.views import ViewSettings, apply_view, sample_view, view_of_mask
from misfm.batches import Batch, Placement, sent
from misfm.errors import ConfigError
from misfm.losses import IGNORE, class_shares, hard_dice, segmentation_loss
from misfm.models.base import Backbone, SegmentationModel
from misfm.models.heads import finest
from misfm.pretext.base import PRETEXTS, Meeting, PretextTask
from misfm.seeding import draw_below, draw_int
from misfm.settings import CountRange, Probability
from misfm.volume import Shape


def fuse(foreground: Tensor, background: Tensor, levels: Tensor, num_levels: int = 4) -> Tensor:
    r"""Return X = α I_f + (1 - α) I_b with α = levels / K.

    Args:
        foreground: I_f, (B, C, D, H, W).
        background: I_b, (B, C, D, H, W).
        levels: Y, (B, D, H, W), or (D, H, W) for the whole batch; integers 0..K.
        num_levels: K.

    Returns:
        X, (B, C, D, H, W), in the type and on the device of I_f.
    """
    alpha = levels.to(foreground, copy=True).div_(num_levels)
    return torch.lerp(background, foreground, alpha.unsqueeze(-4))


def sample_levels_v1(
    shape: Shape,
    *,
    num_levels: int = 4,
    num_blocks: CountRange = (10, 40),
    block_size: tuple[CountRange, CountRange, CountRange] = ((8, 40), (8, 80), (8, 80)),
    generator: Generator,
) -> LongTensor:
    """Draw the level map of v1: boxes painted one after the other, the later on top of the earlier.

    Args:
        shape: (D, H, W) of the map.
        num_levels: K; each box gets a level uniform in 1..K, unpainted voxels keep 0.
        num_blocks: fewest and most boxes.
        block_size: smallest and largest side along each of (D, H, W), drawn independently; a box is centred
            anywhere in the map and clipped at its border.
        generator: where all draws come from.

    Returns:
        Y, (D, H, W) int64, values 0..K, on the generator's device.
    """
    levels = torch.zeros(shape, dtype=torch.int64, device=generator.device)
    count = draw_int(*num_blocks, generator)
    lows = torch.tensor([low for low, _ in block_size])
    spans = torch.tensor([high - low + 1 for low, high in block_size])
    sides = lows + draw_below(spans, count, generator)
    starts = draw_below(torch.tensor(shape), count, generator) - sides // 2
    painted = 1 + draw_below(torch.tensor([num_levels]), count, generator)[:, 0]
    boxes = zip(starts.clamp(min=0).tolist(), (starts + sides).tolist(), painted.tolist(), strict=True)
    for (d, h, w), (d_stop, h_stop, w_stop), level in boxes:
        levels[d:d_stop, h:h_stop, w:w_stop] = level
    return cast(LongTensor, levels)


def sample_levels_v2(
    shape: Shape,
    *,
    num_levels: int = 4,
    foreground_ratio: float = 0.7,
    block_size: tuple[CountRange, CountRange, CountRange] = ((8, 32), (8, 32), (8, 32)),
    dtype: torch.dtype = torch.int64,
    generator: Generator,
) -> LongTensor:
    """Draw the level map of v2: a grid of equal blocks, a fixed share of which is foreground.

    Args:
        shape: (D, H, W) of the map.
        num_levels: K; each foreground block gets a level uniform in 1..K.
        foreground_ratio: share of the whole blocks that is foreground, rounded down to a count.
        block_size: smallest and largest side along each of (D, H, W); one size is drawn for the map (and cut
            to its shape). The grid starts at a random offset that still fits the largest number of whole
            blocks; the margin around it keeps level 0.
        dtype: of the map; the smaller, the faster.
        generator: where all draws come from.

    Returns:
        Y, (D, H, W), values 0..K, on the generator's device.
    """
    device = generator.device
    sides = [min(draw_int(*limits, generator), side) for limits, side in zip(block_size, shape, strict=True)]
    counts = [length // side for length, side in zip(shape, sides, strict=True)]
    offsets = [draw_int(0, length % side, generator) for length, side in zip(shape, sides, strict=True)]
    total = counts[0] * counts[1] * counts[2]
    grid = torch.randint(1, num_levels + 1, (total,), generator=generator, device=device)
    background = torch.randperm(total, generator=generator, device=device)[int(total * foreground_ratio) :]
    grid[background] = 0
    # One more block along each axis, of level 0, is that of the margins. The last axis first: it is slowest.
    levels = F.pad(grid.view(*counts).to(dtype), (0, 1) * 3)
    for axis in (2, 1, 0):
        blocks = (torch.arange(shape[axis], device=device) - offsets[axis]).div(
            sides[axis], rounding_mode="floor"
        )
        blocks[(blocks < 0) | (blocks > counts[axis])] = counts[axis]
        levels = levels.index_select(axis, blocks)
    return cast(LongTensor, levels)


def require_two(patches: Tensor) -> None:
    """Refuse a batch of one patch, which would be fused with itself."""
    if len(patches) < 2:
        raise ConfigError(
            "This Volume Fusion fuses the volumes of a batch with each other and got a single one; set "
            "batch_size to 2 or more, or use volume-fusion-v2."
        )


class VolumeFusion(PretextTask):
    """What both versions share: K + 1 classes, Dice + cross-entropy, the pretext Dice as score."""

    num_levels: Annotated[int, Field(ge=1)] = 4
    """K, the number of foreground levels."""
    min_difference: Annotated[float, Field(ge=0)] = 0.0
    """Leave voxels with |I_f - I_b| below this out of the loss; 0 keeps all, as published."""

    def fused_batch(
        self, foreground: Tensor, background: Tensor, levels: Tensor, real: Tensor | None = None
    ) -> Batch:
        """Fuse (B, C, D, H, W) pairs by (B, D, H, W) levels into inputs and targets.

        Voxels that are not ``real`` (B, D, H, W) in both I_f and I_b are left out of the loss; None: all are.
        """
        inputs = fuse(foreground, background, levels, self.num_levels)
        levels = levels.long()
        if real is not None:
            levels = levels.masked_fill(~real, IGNORE)
        if self.min_difference > 0:
            undecidable = ((foreground - background).abs() < self.min_difference).all(1)
            levels = levels.masked_fill(undecidable, IGNORE)
        return Batch(inputs, levels)

    def fuse_neighbours(
        self, images: Tensor, real: Tensor, flips: Sequence[tuple[int, ...]], levels: Tensor
    ) -> Batch:
        """Mirror (B, C, D, H, W) images, each in its own way, and fuse each with the one before it.

        Args:
            images: I_b, and rolled by one I_f.
            real: (B, D, H, W) bool on any device, their voxels that are neither padding nor hidden.
            flips: mirrored axes of each.
            levels: (B, D, H, W) on any device.
        """
        pairs = zip(images, sent(real, images.device), flips, strict=True)
        mirrored = [(flip(image, axes), flip(mask, axes)) for image, mask, axes in pairs]
        background, known = (torch.stack(parts) for parts in zip(*mirrored, strict=True))
        known = known & known.roll(1, 0)
        return self.fused_batch(background.roll(1, 0), background, sent(levels, images.device), known)

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Segmentation into K + 1 levels."""
        return SegmentationModel(backbone, self.num_levels + 1)

    def loss(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """(Dice + cross-entropy) / 2 over all K + 1 classes (MIS-FM, framework figure)."""
        return segmentation_loss(outputs, batch.targets, background=True)

    def score(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, float]:
        """Mean Dice of the levels above 0, and what guessing by the shares of the levels would reach."""
        dice = hard_dice(finest(outputs).detach(), batch.targets)[1:]
        shares = class_shares(batch.targets, self.num_levels + 1)[1:]
        present = shares[shares > 0]
        chance = float(present.mean()) if len(present) else 0.0
        return {"pretext_dice": float(dice.nanmean()), "chance_dice": chance}


@PRETEXTS.register("volume-fusion-v1")
class VolumeFusionV1(VolumeFusion):
    """Volume Fusion of arXiv 2306.16925: the foreground comes from another volume of the batch."""

    samples_meet: ClassVar[Meeting] = "in inputs"

    num_blocks: CountRange = (10, 40)
    """Fewest and most boxes in a sample."""
    block_size: tuple[CountRange, CountRange, CountRange] = ((8, 40), (8, 80), (8, 80))
    """Smallest and largest side along (D, H, W), voxels (published for 64x128x128 patches)."""
    p_flip: Probability = 0.5
    """Chance of a mirror along each axis."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Fuse each patch with the one before it in the batch; see the base class.

        Raises:
            ConfigError: there is only one patch, which would be fused with itself.
        """
        require_two(patches)
        flips = [sample_flips(self.p_flip, generator) for _ in patches]
        levels: list[Tensor] = [
            sample_levels_v1(
                patch_size,
                num_levels=self.num_levels,
                num_blocks=self.num_blocks,
                block_size=self.block_size,
                generator=generator,
            )
            for _ in flips
        ]
        real = placement.real(patch_size, patches.device)[:, 0]
        return self.fuse_neighbours(patches[:, 0], real, flips, torch.stack(levels))


@PRETEXTS.register("volume-fusion-v2")
class VolumeFusionV2(VolumeFusion):
    """Volume Fusion of TIP 2025: both sub-volumes are augmented crops of one volume."""

    num_patches: ClassVar[int] = 2

    foreground_ratio: Probability = 0.7
    """Share of blocks that is foreground."""
    block_size: tuple[CountRange, CountRange, CountRange] = ((8, 32), (8, 32), (8, 32))
    """Smallest and largest side along (D, H, W), voxels (published for 64x128x128 patches)."""
    views: ViewSettings = ViewSettings()
    """How the two crops are drawn and augmented."""
    p_inversion: Probability = 0.25
    """Chance that both crops are inverted together, x -> 1 - x."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Room for the largest crop."""
        return self.views.source_size(patch_size)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Fuse two augmented crops of each volume; see the base class."""
        return self.fused_batch(*self.draw(patches, placement, patch_size, generator))

    def draw(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Draw the arguments of :meth:`fused_batch`; arguments as ``prepare``.

        Returns:
            I_f and I_b, (B, C, *patch_size) each; Y, (B, *patch_size); and the voxels in which hidden ones
            have no part, (B, *patch_size) bool, or None where there are no hidden ones. No view has padding.
        """
        views = patches.new_empty(2, len(patches), patches.shape[2], *patch_size)
        levels: list[Tensor] = []
        real: list[Tensor] = []
        hidden = None if placement.hidden is None else sent(placement.hidden, patches.device)
        for sample, (pair, extents) in enumerate(zip(patches, placement.valid.tolist(), strict=True)):
            plans = [sample_view(self.views, patch_size, extent, generator) for extent in extents]
            if hidden is not None:
                seen = [view_of_mask(m, p, patch_size) for m, p in zip(hidden[sample], plans, strict=True)]
                real.append(~(seen[0] | seen[1]))
            for crop, plan, view in zip(pair, plans, views[:, sample], strict=True):
                apply_view(crop, plan, patch_size, out=view)
            if float(torch.rand((), generator=generator)) < self.p_inversion:
                views[:, sample].neg_().add_(1)
            levels.append(
                sample_levels_v2(
                    patch_size,
                    num_levels=self.num_levels,
                    foreground_ratio=self.foreground_ratio,
                    block_size=self.block_size,
                    dtype=torch.uint8 if self.num_levels < 256 else torch.int64,
                    generator=generator,
                )
            )
        return (
            views[0],
            views[1],
            sent(torch.stack(levels), patches.device),
            torch.stack(real) if real else None,
        )
