"""vox2vec: the same voxel seen in two crops has the same vector, and another voxel another one.

Goncharov et al., MICCAI 2023 (arXiv 2307.14725). Two crops of a volume that overlap, each with other
intensities, pass encoder and decoder. A voxel's vector is what all levels of the decoder and the bottleneck
hold where it lies, one after the other, projected to 128 numbers; NT-Xent with temperature 0.1 tells its
vector in the other crop from those of all other voxels drawn, in both crops and all volumes of the batch. As
there, crops are not mirrored or turned, for left and right are to differ.

Departures from the authors' code: a batch holds pairs of different volumes, not ten of one; crops lie at most
half a patch apart (``source_scale``) instead of sharing any one voxel, which reads less than half as much;
brightness and contrast stand in for windows of Hounsfield units, and there is no sharpening; instead of a
body mask, voxels as dark as the darkest of the source (clipped air) are not drawn; each vector is normalised
on its own within the projector instead of over the batch. Voxels that were hidden to make the patient unknown
are not drawn either, unless two crops share no others. Fits every network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from misfm.augment.crops import Extent, cut, sample_start
from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.batches import Batch, Placement, sent
from misfm.models.base import Backbone, pad_to_fit
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.pretext.embedding import (
    matching_score,
    nt_xent,
    pair_up,
    projector,
    steps_to_partners,
)
from misfm.volume import Shape, triple


@dataclass(frozen=True)
class VoxelPairs(Batch):
    """``inputs`` are two crops of each volume, one after the other.

    ``context`` is (2N, 4) int64, crop and place along (D, H, W) of N voxels, each in the first crop of its
    volume and then in the second one.
    """

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Count the crops on."""
        firsts = accumulate((len(part.inputs) for part in parts[:-1]), initial=0)
        shifts = [
            F.pad(part.context[0].new_tensor([first]), (0, 3))
            for first, part in zip(firsts, parts, strict=True)
        ]
        counted = [
            replace(part, context=(part.context[0] + shift,))
            for part, shift in zip(parts, shifts, strict=True)
        ]
        return super().joined(counted)


@PRETEXTS.register("vox2vec")
class Vox2Vec(PretextTask):
    """Contrast of voxels; see the module's docstring."""

    num_voxels: PositiveInt = 1024
    """Most voxels drawn from a pair of crops; memory grows with the square of this times the batch size."""
    source_scale: Annotated[float, Field(gt=1, le=2)] = 1.5
    """Side of the source over that of the crops."""
    temperature: PositiveFloat = 0.1
    """T of NT-Xent."""
    embedding_channels: PositiveInt = 128
    """Length of the vectors that are contrasted."""
    intensities: IntensitySettings = IntensitySettings(
        p_noise=0.5,
        noise=(0.001, 0.1),
        p_blur=0.25,
        blur=(0.25, 1.5),
        p_low_resolution=0.0,
        p_brightness=0.8,
        p_contrast=0.8,
        p_gamma=0.0,
    )
    """How the intensities of each crop are varied."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Room for two crops that lie apart, yet share a voxel."""
        return triple(min(math.ceil(self.source_scale * side), 2 * side - 1) for side in patch_size)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Cut and vary two crops of each volume and draw voxels; see the base class.

        ``targets`` are where the partner of each voxel stands, seen from it.
        """
        source = self.source_size(patch_size)
        # Which voxels there are to draw from is known where they were read.
        read = patches if placement.read is None else placement.read
        real = placement.real(source, read.device)[:, 0]
        crops: list[tuple[Tensor, Tensor]] = []
        places: list[Tensor] = []
        for index, volume in enumerate(patches[:, 0]):
            extent = placement.valid[index, 0].tolist()
            starts = [sample_start(patch_size, source, extent, generator) for _ in range(2)]
            crops.append((cut(volume, starts[0], patch_size), cut(volume, starts[1], patch_size)))
            voxels = self.sample_voxels(
                read[index, 0], real[index], common_box(starts, patch_size, extent), generator
            )
            within = [
                F.pad(voxels - torch.tensor(start, device=voxels.device), (1, 0), value=2 * index + view)
                for view, start in enumerate(starts)
            ]
            places.append(torch.stack(within, 1).flatten(0, 1))
        context = sent(torch.cat(places), patches.device)
        views = pair_up(crops)
        plan = sample_intensities(len(views), self.intensities, generator)
        targets = steps_to_partners(len(context), patches.device)
        return VoxelPairs(apply_intensities(views, plan), targets, (context,))

    def sample_voxels(self, volume: Tensor, real: Tensor, box: Extent, generator: Generator) -> Tensor:
        """Draw different voxels (n, 3) of a source (C, D, H, W) from a box.

        They are among the ``real`` ones (D, H, W) and brighter than air if any are; else real, if any are.
        """
        start, size = _start_and_size(box)
        darkest = volume.where(real, torch.inf).amin((1, 2, 3), keepdim=True)
        shown = cut(real, start, size)
        bright = (cut(volume, start, size) > darkest).any(0) & shown
        choices = (bright, shown, torch.ones_like(shown))
        candidates = next(choice for choice in choices if bool(choice.any())).nonzero()
        # Few are drawn twice from many; dropping these is quicker than a permutation of all.
        drawn = torch.randint(len(candidates), (self.num_voxels,), generator=generator).tolist()
        different = torch.tensor(sorted(set(drawn)), device=candidates.device)
        return candidates[different] + torch.tensor(start, device=candidates.device)

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Encoder, decoder and projector."""
        return VoxelModel(backbone, self.embedding_channels)

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """NT-Xent over all voxels of the batch."""
        return {"nt_xent": nt_xent(outputs, self.temperature)}

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """How often the most similar voxel is the same one in the other crop, beside chance."""
        return matching_score(outputs)


def common_box(starts: list[Shape], size: Shape, extent: Extent) -> tuple[list[int], list[int]]:
    """First voxels and first voxels behind of what two crops share of the part that is not padding."""
    low = [max(*places) for places in zip(*starts, extent[0], strict=True)]
    stops = ([place + side for place, side in zip(start, size, strict=True)] for start in starts)
    return low, [min(*places) for places in zip(*stops, extent[1], strict=True)]


def _start_and_size(box: Extent) -> tuple[Shape, Shape]:
    d, h, w = box[0]
    depth, height, width = (stop - start for start, stop in zip(*box, strict=True))
    return (d, h, w), (depth, height, width)


class VoxelModel(nn.Module):
    """Patches (B, C, D, H, W) and voxels (M, 4) of them -> vectors (M, E)."""

    def __init__(self, backbone: Backbone, embedding_channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        width = sum(backbone.channels) + backbone.encoder_channels[-1]
        self.projector = projector(width, (width, width, embedding_channels))

    def forward(self, x: Tensor, voxels: Tensor) -> Tensor:
        """See the class."""
        padded = pad_to_fit(x, self.backbone)
        features = self.backbone.encoder(padded)
        pyramid = [*self.backbone.decoder(features), features[-1]]
        return cast(Tensor, self.projector(gather(pyramid, voxels, padded.shape[2:])))


def gather(pyramid: list[Tensor], voxels: Tensor, size: torch.Size) -> Tensor:
    """What each level (B, C_i, D_i, H_i, W_i) of a patch of ``size`` holds at voxels (M, 4): (M, sum C_i)."""
    crop, *places = voxels.unbind(1)
    columns = []
    for level in pyramid:
        d, h, w = (
            place * side // whole for place, side, whole in zip(places, level.shape[2:], size, strict=True)
        )
        columns.append(level[crop, :, d, h, w])
    return torch.cat(columns, 1)
