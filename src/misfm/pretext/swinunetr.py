"""SwinUNETR's three heads: which way up, which patient, and what was cut out.

Tang et al., CVPR 2022 (arXiv 2111.14791), as the OpenMind benchmark runs it (arXiv 2412.17041; nnssl). Two
views of a patch are turned by a multiple of 90 degrees in the plane of H and W; up to 30 % of each is
replaced by blocks of noise, then up to 30 % by blocks of another volume of the batch. From the bottleneck one
head tells the turn (cross-entropy over 4), one gives a vector by which the two views of a volume find each
other among all views (NT-Xent, temperature 0.5), and one restores the turned patch (mean absolute error);
weights 1.

Departures from nnssl: the first two heads read the average of the bottleneck, not its first and second voxel
(which lie in a corner of the patch); noise spans the range of the patch, not [0, 1] whatever the intensities;
patches need not be square (the source is, and the patch is its middle after the turn); padding is not
restored. Fits every network; the decoder is not trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from misfm.augment.crops import cut
from misfm.batches import Batch, Placement, sent
from misfm.errors import ConfigError
from misfm.losses import batch_mean, masked_mean
from misfm.models.base import Backbone
from misfm.pretext.base import PRETEXTS, Meeting, PretextTask
from misfm.pretext.embedding import encode, matching_score, nt_xent, require_others
from misfm.seeding import draw_below, draw_int, draw_uniform
from misfm.settings import Probability, ascending
from misfm.volume import Box, Shape, triple

NUM_TURNS = 4
MIN_CHANNELS = 16
"""Fewest channels within the head that restores."""
BOXES_AT_ONCE = 32
"""Boxes drawn in one go, of which as many are taken as are needed."""

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class TurnedViews(Batch):
    """``targets`` (2B, C, D, H, W) are the turned patches before anything was cut out, two of each volume.

    Attributes:
        quarters: (2B,) int64, turns by 90 degrees.
        real: (2B, D, H, W) bool, see :meth:`misfm.pretext.base.Placement.real`; only these are restored.
    """

    quarters: Tensor
    real: Tensor


class Answers(NamedTuple):
    """What the three heads say: (2B, 4) logits, (2B, E) vectors, (2B, C, D, H, W) intensities."""

    quarters: Tensor
    vectors: Tensor
    restored: Tensor


@dataclass(frozen=True)
class Cutout:
    """One draw for a view.

    Attributes:
        noise: boxes that become noise.
        noise_seed: of that noise.
        donor: index of the view from which the boxes of ``grafts`` are copied afterwards.
        grafts: boxes copied.
    """

    noise: tuple[Box, ...]
    noise_seed: int
    donor: int
    grafts: tuple[Box, ...]


@PRETEXTS.register("swinunetr")
class SwinUNETR(PretextTask):
    """Rotation, contrast and reconstruction; see the module's docstring."""

    samples_meet: ClassVar[Meeting] = "in inputs"

    trains_decoder: ClassVar[bool] = False

    max_share: Probability = 0.3
    """Largest share of the voxels replaced by noise, and again by another volume; drawn from 0 to this."""
    block_side: Annotated[tuple[Share, Share], AfterValidator(ascending)] = (0.05, 0.25)
    """Shortest and longest side of a block, as a share of that of the patch."""
    temperature: PositiveFloat = 0.5
    """T of NT-Xent."""
    embedding_channels: PositiveInt = 512
    """Length of the vectors that are contrasted."""

    def source_size(self, patch_size: Shape) -> Shape:
        """Square in the plane of H and W."""
        d, h, w = patch_size
        return d, max(h, w), max(h, w)

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> TurnedViews:
        """Turn each patch twice and cut out; see the base class.

        Raises:
            ConfigError: a single volume, which has no other to differ from or to copy from.
        """
        require_others(len(patches), "The SwinUNETR task")
        count = len(patches)
        source = self.source_size(patch_size)
        middle = (0, (source[1] - patch_size[1]) // 2, (source[2] - patch_size[2]) // 2)
        quarters = torch.randint(NUM_TURNS, (2 * count,), generator=generator)
        real = placement.real(source, patches.device)[:, 0]
        whole = [
            cut(turn(patches[i // 2, 0], k), middle, patch_size) for i, k in enumerate(quarters.tolist())
        ]
        mask = [cut(turn(real[i // 2], k), middle, patch_size) for i, k in enumerate(quarters.tolist())]
        views = torch.stack(whole)
        plans = [self.sample_cutout(index, count, patch_size, generator) for index in range(2 * count)]
        return TurnedViews(
            apply_cutouts(views, plans),
            views,
            quarters=sent(quarters, patches.device),
            real=torch.stack(mask),
        )

    def sample_cutout(self, index: int, count: int, size: Shape, generator: Generator) -> Cutout:
        """Draw what is cut out of a view, one of two of each of ``count`` volumes."""
        volume, view = divmod(index, 2)
        return Cutout(
            noise=sample_boxes(size, self.max_share, self.block_side, generator),
            noise_seed=draw_int(0, 2**62, generator),
            donor=2 * ((volume + draw_int(1, count - 1, generator)) % count) + view,
            grafts=sample_boxes(size, self.max_share, self.block_side, generator),
        )

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Three heads on the bottleneck."""
        return ThreeHeads(backbone, self.embedding_channels)

    def loss(self, outputs: Answers, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy, NT-Xent and mean absolute error of the three heads."""
        assert isinstance(batch, TurnedViews)
        error = (outputs.restored.float() - batch.targets).abs()
        return {
            "rotation": batch_mean(
                F.cross_entropy(outputs.quarters.float(), batch.quarters, reduction="none")
            ),
            "contrast": nt_xent(outputs.vectors, self.temperature),
            "reconstruction": masked_mean(error, batch.real),
        }

    def score(self, outputs: Answers, batch: Batch) -> Mapping[str, float]:
        """Accuracies beside chance, and the error beside that of the mean intensity."""
        assert isinstance(batch, TurnedViews)
        hits = outputs.quarters.argmax(1) == batch.quarters
        mean = masked_mean(batch.targets, batch.real)
        return {
            "rotation_accuracy": float(batch_mean(hits.float())),
            "rotation_chance": 1 / NUM_TURNS,
            **matching_score(outputs.vectors),
            "restored_error": float(
                masked_mean((outputs.restored.detach() - batch.targets).abs(), batch.real)
            ),
            "mean_error": float(masked_mean((mean - batch.targets).abs(), batch.real)),
        }


def turn(x: Tensor, quarters: int) -> Tensor:
    """Turn (…, D, H, W) by multiples of 90 degrees from H towards W."""
    return x.rot90(quarters, (-2, -1))


def sample_boxes(
    size: Shape, max_share: float, side: tuple[float, float], generator: Generator
) -> tuple[Box, ...]:
    """Draw boxes until their volumes add up to a share of the patch drawn from 0 to ``max_share``.

    Sides are drawn for each axis; boxes start anywhere and end at the border of the patch at the latest.
    """
    wanted = draw_uniform(0, max_share, generator) * math.prod(size)
    sizes = torch.tensor(size)
    shortest, longest = ((share * sizes).long().clamp(min=1) for share in side)
    limits = torch.cat([sizes - shortest + 1, longest - shortest + 1])
    boxes: list[Box] = []
    while wanted > 0:
        starts, extra = draw_below(limits, BOXES_AT_ONCE, generator).chunk(2, dim=1)
        sides = torch.minimum(shortest + extra, sizes - starts)
        for (d, h, w), (depth, height, width) in zip(starts.tolist(), sides.tolist(), strict=True):
            if wanted > 0:
                boxes.append(Box((d, h, w), (depth, height, width)))
                wanted -= depth * height * width
    return tuple(boxes)


def apply_cutouts(views: Tensor, plans: list[Cutout]) -> Tensor:
    """Return views (2B, C, D, H, W) with noise, then parts of others, in their boxes; pure."""
    changed = views.clone()
    for view, plan, result in zip(views, plans, changed, strict=True):
        low, high = view.amin((1, 2, 3), keepdim=True), view.amax((1, 2, 3), keepdim=True)
        generator = torch.Generator(views.device).manual_seed(plan.noise_seed)
        for box in plan.noise:
            shape = (len(view), *box.size)
            noise = torch.randn(shape, generator=generator, device=views.device, dtype=views.dtype)
            noise -= noise.amin()
            result[:, *box.slices] = low + (high - low) * noise / noise.amax().clamp(min=1e-6)
        for box in plan.grafts:
            result[:, *box.slices] = views[plan.donor][:, *box.slices]
    return changed


class ThreeHeads(nn.Module):
    """Patch (B, C, D, H, W) -> :class:`Answers`, all from the bottleneck."""

    def __init__(self, backbone: Backbone, embedding_channels: int) -> None:
        super().__init__()
        channels, stride = backbone.encoder_channels[-1], backbone.encoder_strides[-1]
        self.backbone = backbone
        self.rotation_head = nn.Linear(channels, NUM_TURNS)
        self.contrast_head = nn.Linear(channels, embedding_channels)
        self.restoring_head = RestoringHead(channels, stride, backbone.in_channels)

    def forward(self, x: Tensor) -> Answers:
        """See the class.

        Raises:
            ConfigError: a single voxel is left of the patch at the bottleneck.
        """
        size = triple(x.shape[2:])
        if all(side <= stride for side, stride in zip(size, self.restoring_head.stride, strict=True)):
            raise ConfigError(
                f"A patch of {size} leaves one voxel at the bottleneck, too little to restore it "
                "from in the SwinUNETR task; take a larger patch_size."
            )
        bottleneck = encode(self.backbone, x)[-1]
        mean, restored = bottleneck.mean((2, 3, 4)), self.restoring_head(bottleneck, size)
        return Answers(self.rotation_head(mean), self.contrast_head(mean), restored)


class RestoringHead(nn.Module):
    """3x3x3 convolution, instance norm, leaky ReLU and doubling, down to the voxels of the patch.

    The last doubling follows the 1x1x1 convolution to intensities, which gives the same voxels for less.

    Args:
        in_channels: of the bottleneck.
        stride: voxels of the patch per feature of it along (D, H, W).
        out_channels: of the patch.
    """

    def __init__(self, in_channels: int, stride: Shape, out_channels: int) -> None:
        super().__init__()
        steps = max(1, math.ceil(math.log2(max(stride))))
        channels = [max(in_channels // 2**step, MIN_CHANNELS) for step in range(1, steps + 1)]
        blocks = [
            nn.Sequential(
                nn.Conv3d(before, after, kernel_size=3, padding=1, bias=False),
                nn.InstanceNorm3d(after, affine=True),
                nn.LeakyReLU(),
            )
            for before, after in pairwise([in_channels, *channels])
        ]
        blocks[-1].append(nn.Conv3d(channels[-1], out_channels, kernel_size=1))
        self.blocks = nn.ModuleList(blocks)
        self.stride = stride

    def forward(self, x: Tensor, size: Shape) -> Tensor:
        """Bottleneck (B, C, d, h, w) -> intensities (B, out_channels, *size)."""
        for step, block in enumerate(self.blocks, start=1):
            strides = [max(1, stride // 2**step) for stride in self.stride]
            sides = [-(-side // stride) for side, stride in zip(size, strides, strict=True)]
            x = F.interpolate(block(x), sides, mode="trilinear")
        return x
