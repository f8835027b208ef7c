r"""VoCo: how similar a crop is to each tile of its surroundings should tell how much it overlaps it.

Wu, Zhuang and Chen, CVPR 2024 (arXiv 2402.17300), with the sizes of the OpenMind benchmark (arXiv 2412.17041;
nnssl). A source of 4 x 4 x 1 patches is tiled into base crops q_i; target crops k_t are cut from it at
random. With the cosines :math:`s_{ti} = \max(0, \cos(k_t, q_i))`, in which bases are constants, and the
shares :math:`g_{ti}` of the volume of crop t that lies in base i,

.. math::
    L = -\frac{\sum g_{ti} \log(1 - |g_{ti} - s_{ti}|)}{\sum g_{ti}}
        + \operatorname{mean}_{g_{ti} = 0} s_{ti}^2
        + \operatorname{mean}_{i < j} \max(0, \cos(q_i, q_j)),

for each volume, averaged over volumes.

Departures from nnssl: any grid and any shape of patch; bases that hold nothing but padding and hidden voxels
are neither run nor counted; target crops lie within the volume where it is larger than they are. No voxel
has a loss of its own, so hidden ones beside others are seen like these. Fits every network; the decoder is
not trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Generator, Tensor, nn

from misfm.augment.crops import (
    CropSettings,
    apply_variation,
    cut,
    overlap,
    sample_start,
    sample_variation,
    tiled_size,
)
from misfm.batches import Batch, Placement, sent
from misfm.losses import batch_mean
from misfm.models.base import Backbone
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.pretext.embedding import EmbeddingModel, Widths, cosines
from misfm.settings import PositiveShape
from misfm.volume import Shape

TINY = 1e-6
"""Keeps the logarithm of a similarity that is entirely wrong finite."""


@dataclass(frozen=True, kw_only=True)
class Tiles(Batch):
    """``inputs`` are of each volume the bases that hold voxels, then its targets.

    ``targets`` is (B, T, G), share of each target crop that lies in each base.

    Attributes:
        real: (B, G) bool, which bases hold voxels that are neither padding nor hidden.
    """

    real: Tensor


@PRETEXTS.register("voco")
class VoCo(PretextTask):
    """Overlaps with the tiles of a volume; see the module's docstring."""

    trains_decoder: ClassVar[bool] = False

    grid: PositiveShape = (4, 4, 1)
    """Base crops along (D, H, W)."""
    num_targets: PositiveInt = 4
    """Target crops of each volume."""
    widths: Widths = (2048, 2048, 2048)
    """Output channels of each layer of the projector."""
    crops: CropSettings = CropSettings()
    """How crops are varied."""

    def source_size(self, patch_size: Shape) -> Shape:
        """The whole grid."""
        return tiled_size(patch_size, self.grid)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Tiles:
        """Tile each volume and cut targets; see the base class."""
        source = self.source_size(patch_size)
        tiles = self.tile_starts(patch_size)
        real = self.tiles_that_hold(placement, patch_size)
        crops, shares = [], []
        for volume, holds, extent in zip(patches[:, 0], real, placement.valid[:, 0].tolist(), strict=True):
            starts = [sample_start(patch_size, source, extent, generator) for _ in range(self.num_targets)]
            crops += [cut(volume, (d, h, w), patch_size) for d, h, w in [*tiles[holds].tolist(), *starts]]
            shares.append(overlap(torch.tensor(starts), tiles, patch_size))
        variation = sample_variation(self.crops, len(crops), patch_size, generator)
        return Tiles(
            apply_variation(torch.stack(crops), variation),
            sent(torch.stack(shares), patches.device),
            real=sent(real, patches.device),
        )

    def tiles_that_hold(self, placement: Placement, patch_size: Shape) -> Tensor:
        """Which bases (B, G) bool hold any voxel that is neither padding nor hidden."""
        tiles = self.tile_starts(patch_size)
        if placement.hidden is None:
            first, stop = placement.valid[:, 0, :, None].unbind(1)
            return ((tiles < stop) & (tiles + torch.tensor(patch_size) > first)).all(2)
        real = placement.real(self.source_size(patch_size))[:, 0]
        return torch.stack(
            [cut(real, (d, h, w), patch_size).any(3).any(2).any(1) for d, h, w in tiles.tolist()], 1
        )

    def tile_starts(self, patch_size: Shape) -> Tensor:
        """First voxels of the bases, (G, 3) int64."""
        return torch.cartesian_prod(*(torch.arange(count) for count in self.grid)) * torch.tensor(patch_size)

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Encoder and projector."""
        return EmbeddingModel(backbone, self.widths)

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The three terms of the module's docstring."""
        assert isinstance(batch, Tiles)
        bases, targets = split(outputs, batch)
        share, real = batch.targets, batch.real[:, None]
        similar = cosines(targets, bases.detach()).relu()
        surprise = -((1 - (share - similar).abs()).clamp(min=0) + TINY).log()
        alike = cosines(bases, bases).relu()
        pairs = (real & real.mT).triu(diagonal=1)
        return {
            "overlap": weighted_mean(surprise, share * real),
            "elsewhere": weighted_mean(similar**2, (share == 0) & real),
            "bases_alike": weighted_mean(alike, pairs),
        }

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """How often the most similar base is one that shares most with the crop, beside chance."""
        assert isinstance(batch, Tiles)
        bases, targets = split(outputs.detach(), batch)
        empty = ~batch.real[:, None]
        share = batch.targets.masked_fill(empty, -1)
        best = share == share.amax(-1, keepdim=True)
        nearest = cosines(targets, bases).masked_fill(empty, -2).argmax(-1, keepdim=True)
        chance = best.sum(-1) / batch.real.sum(-1, keepdim=True)
        return {
            "nearest_base_accuracy": float(batch_mean(best.gather(-1, nearest).float())),
            "chance_accuracy": float(batch_mean(chance)),
        }


def split(outputs: Tensor, batch: Tiles) -> tuple[Tensor, Tensor]:
    """Vectors of a batch's inputs -> those of the bases (B, G, E), 0 where empty, and targets (B, T, E)."""
    wanted, grid = batch.targets.shape[1:]
    there = torch.cat([batch.real, batch.real.new_ones(len(batch.real), wanted)], 1)
    row = (there.flatten().cumsum(0) - 1).clamp(min=0).view(there.shape)
    vectors = torch.where(there[..., None], outputs[row], 0)
    return vectors[:, :grid], vectors[:, grid:]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of (B, N, M) by weights, for each volume and then over volumes; 0 for a volume without weight."""
    total = weights.sum((1, 2))
    return batch_mean((values * weights).sum((1, 2)) / torch.where(total > 0, total, 1))
