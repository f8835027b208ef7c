"""SimCLR: two varied crops of nearly the same place are more alike than crops of different places.

Chen et al., arXiv 2002.05709, in 3D as the OpenMind benchmark runs it (arXiv 2412.17041; nnssl): from a
source of 3 x 3 x 1 patches two reference crops are cut at random, each with a partner at most half a crop
away along each axis; all are varied on their own and embedded, and NT-Xent with temperature 0.5 tells each
partner from all other crops of the batch.

Departures from nnssl: crops stay within the volume where it is larger than they are; patches of any shape.
No voxel has a loss of its own, so hidden ones are seen like all others. Fits every network; the decoder is
not trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from misfm.augment.crops import (
    CropSettings,
    apply_variation,
    cut,
    sample_start,
    sample_start_near,
    sample_variation,
    start_limits,
    tiled_size,
)
from misfm.batches import Batch, Placement
from misfm.models.base import Backbone
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.pretext.embedding import (
    EmbeddingModel,
    Widths,
    matching_score,
    nt_xent,
    pair_up,
    steps_to_partners,
)
from misfm.settings import PositiveShape, Probability
from misfm.volume import Shape


@PRETEXTS.register("simclr")
class SimCLR(PretextTask):
    """Contrast of overlapping crops; see the module's docstring."""

    trains_decoder: ClassVar[bool] = False

    num_pairs: PositiveInt = 2
    """Pairs of crops cut from each volume."""
    source_patches: PositiveShape = (3, 3, 1)
    """Size of the source along (D, H, W), in patches."""
    reach: Probability = 0.5
    """Largest distance of a partner along an axis, in sides of a crop."""
    temperature: PositiveFloat = 0.5
    """T of NT-Xent."""
    widths: Widths = (2048, 2048, 2048)
    """Output channels of each layer of the projector."""
    crops: CropSettings = CropSettings()
    """How crops are varied."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Several patches along each axis."""
        return tiled_size(patch_size, self.source_patches)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Cut and vary pairs of crops that follow each other; see the base class.

        ``targets`` are where the partner of each crop stands, seen from it.
        """
        pairs = []
        for source, extent in zip(patches[:, 0], placement.valid[:, 0].tolist(), strict=True):
            for _ in range(self.num_pairs):
                starts = self.sample_pair(patch_size, extent, generator)
                pairs.append((cut(source, starts[0], patch_size), cut(source, starts[1], patch_size)))
        crops = pair_up(pairs)
        variation = sample_variation(self.crops, len(crops), patch_size, generator)
        return Batch(apply_variation(crops, variation), steps_to_partners(len(crops), patches.device))

    def sample_pair(
        self, patch_size: Shape, extent: list[list[int]], generator: Generator
    ) -> tuple[Shape, Shape]:
        """Draw the first voxels of a reference crop and its partner."""
        source = self.source_size(patch_size)
        start = sample_start(patch_size, source, extent, generator)
        d, h, w = (int(self.reach * side) for side in patch_size)
        limits = start_limits(patch_size, source, extent)
        return start, sample_start_near(start, (d, h, w), limits, generator)

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Encoder and projector."""
        return EmbeddingModel(backbone, self.widths)

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """NT-Xent over all crops of the batch."""
        return {"nt_xent": nt_xent(outputs, self.temperature)}

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """How often the partner is the most similar crop, beside chance."""
        return matching_score(outputs)
