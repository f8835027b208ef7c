"""Volume Fusion as nnssl trains it, for the OpenMind benchmark (arXiv 2412.17041).

The rule is that of :mod:`misfm.pretext.volume_fusion`; nnssl differs from both published versions:

- I_f and I_b come from two volumes of the batch, as in v1, and each is augmented lightly before the fusion:
  noise, blur, low resolution, brightness, contrast, gamma, mirrors, with nnU-Net's probabilities;
- boxes lie within the patch, with sides from 8 voxels to 5/8 of the patch's, later ones on top;
- a box is painted with a level uniform in 0..K, so also with pure background: about 63 % of the voxels end
  up in level 0, and 9 % in each other one;
- the loss is Dice + cross-entropy, not half of it, the Dice of each sample on its own.

Departures from nnssl: patches lie where the store draws them, not always at the centre of the volume; each
volume of a batch is once foreground and once background, with one augmentation, instead of reading twice as
many; intensity changes keep the order of :mod:`misfm.augment.intensity`; voxels that are padding or hidden
in either volume count in no loss. Fits every network with a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field, PositiveInt
from torch import Generator, LongTensor, Tensor

from misfm import world
from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.augment.mirrors import sample_flips
from misfm.batches import Batch, Placement
from misfm.losses import batch_mean, segmentation_loss
from misfm.pretext.base import PRETEXTS, Meeting
from misfm.pretext.volume_fusion import VolumeFusion, require_two
from misfm.seeding import draw_int
from misfm.settings import CountRange, Probability
from misfm.volume import Shape


@PRETEXTS.register("openmind-vf")
class OpenMindVolumeFusion(VolumeFusion):
    """Volume Fusion with nnssl's boxes, augmentation and loss; see the module's docstring."""

    samples_meet: ClassVar[Meeting] = "in inputs"

    num_blocks: CountRange = (10, 39)
    """Fewest and most boxes in a sample."""
    smallest_block: PositiveInt = 8
    """Smallest side of a box, voxels."""
    largest_block: Annotated[float, Field(gt=0, le=1)] = 0.625
    """Largest side of a box over that of the patch."""
    p_flip: Probability = 0.5
    """Chance of a mirror along each axis."""
    # nnssl draws a gamma curve with 0.3 and one on the negative with 0.1: 0.37 for any of them.
    intensities: IntensitySettings = IntensitySettings(p_gamma=0.37)
    """How intensities vary before the fusion."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Fuse each patch with the one before it in the batch; see the base class.

        Raises:
            ConfigError: there is only one patch, which would be fused with itself.
        """
        require_two(patches)
        images = patches[:, 0]
        images = apply_intensities(images, sample_intensities(len(images), self.intensities, generator))
        flips = [sample_flips(self.p_flip, generator) for _ in images]
        levels: list[Tensor] = [sample_levels(self, patch_size, generator) for _ in flips]
        real = placement.real(patch_size, images.device)[:, 0]
        return self.fuse_neighbours(images, real, flips, torch.stack(levels))

    def loss(self, outputs: Tensor | list[Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Dice + cross-entropy over all K + 1 classes, averaged over the samples."""
        assert isinstance(outputs, Tensor)
        pairs = zip(outputs[:, None], batch.targets[:, None], strict=True)
        with world.alone():  # each sample for itself
            terms = [segmentation_loss(logits, levels, background=True) for logits, levels in pairs]
        return {name: 2 * batch_mean(torch.stack([term[name] for term in terms])) for name in terms[0]}


def sample_levels(settings: OpenMindVolumeFusion, shape: Shape, generator: Generator) -> LongTensor:
    """Draw a level map: boxes within it, painted one after the other with levels 0..K, later ones on top.

    Returns:
        Y, (D, H, W) int64, values 0..K; voxels outside of all boxes keep 0.
    """
    levels = torch.zeros(shape, dtype=torch.int64)
    largest = [max(1, int(settings.largest_block * side)) for side in shape]
    for _ in range(draw_int(*settings.num_blocks, generator)):
        sides = [draw_int(min(settings.smallest_block, most), most, generator) for most in largest]
        d, h, w = (
            slice(start := draw_int(0, length - side, generator), start + side)
            for length, side in zip(shape, sides, strict=True)
        )
        levels[d, h, w] = draw_int(0, settings.num_levels, generator)
    return cast(LongTensor, levels)
