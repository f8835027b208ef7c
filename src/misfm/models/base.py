"""The contract every network follows: a backbone (encoder and decoder) and a separate head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.heads import SegmentationHead
from misfm.registry import Registry
from misfm.volume import Shape, triple


class Backbone(nn.Module):
    """An encoder and a decoder; subclasses set every attribute below in their constructor.

    ``encoder(x)`` turns a patch (B, C, D, H, W) into features from high to low resolution, and
    ``decoder(features)`` turns those into features from the finest level downwards. A model for another
    purpose (a pretext task, another number of classes) keeps the backbone and replaces the head.

    Attributes:
        encoder: module, (B, C, D, H, W) -> list of features, high to low resolution. Its parameters are
            defined from the stem to the deepest level; their names number the levels behind the stem from 0.
        decoder: module, list of encoder features -> list of features, finest first.
        in_channels: C, channels of the image.
        encoder_channels: channels of each feature that the encoder returns, high to low resolution.
        encoder_strides: voxels of input per feature along (D, H, W), one triple for each of them.
        channels: feature channels of each level of the decoder's output, finest first.
        strides: likewise, of the logits that a head makes of them, finest first.
        stem_weight: name of the parameter (out, C, ...) that takes the image.
        input_size: the only patch size the network takes, or None where any multiple of ``min_divisor`` fits.
        min_divisor: what each side of a patch is padded to a multiple of.
        grid: tokens along (D, H, W), for which position embeddings are laid out; None without tokens.
        options: all options of its builder as JSON has them, with what followed from the patch size resolved:
            what builds the same network for any patch size. Builders set what they resolve, and
            :func:`misfm.models.create` adds the rest.
    """

    encoder: nn.Module
    decoder: nn.Module
    in_channels: int
    encoder_channels: tuple[int, ...]
    encoder_strides: tuple[Shape, ...]
    channels: tuple[int, ...]
    strides: tuple[Shape, ...]
    stem_weight: str = "encoder.stem.weight"
    input_size: Shape | None = None
    min_divisor: Shape = (1, 1, 1)
    grid: Shape | None = None
    options: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.options = {}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of a patch (B, C, D, H, W), finest first."""
        return cast(list[Tensor], self.decoder(self.encoder(x)))

    def build_head(self, num_classes: int, *, num_outputs: int) -> SegmentationHead:
        """Return a fresh head with ``num_outputs`` levels; networks with a published head override this."""
        return SegmentationHead(
            [nn.Conv3d(channels, num_classes, kernel_size=1) for channels in self.channels[:num_outputs]]
        )

    def encoder_depths(self) -> dict[str, int]:
        """How deep each parameter of the encoder lies, from 0 at the stem, by its name in the encoder."""
        return depths_by_name([name for name, _ in self.encoder.named_parameters()])

    def token_axes(self, recorded: Mapping[str, Any] | None) -> Shape:
        """The axes of ``grid`` in the order in which it is flattened once :meth:`adopt` took ``recorded``."""
        return (0, 1, 2)

    def adopt(self, recorded: Mapping[str, Any] | None, *, source: str = "The weights") -> list[str]:
        """Fill in what the options left to the weights; called before a tensor is taken, when all else fits.

        Args:
            recorded: options of the network the weights were trained in; None where nothing is known.
            source: what to call the weights.

        Returns:
            Where this network differs in what shapes do not tell, in sentences for the report.

        Raises:
            WeightsError: it differs so much that the weights are of no use in it; nothing was changed.
        """
        return []


def depths_by_name(names: Sequence[str]) -> dict[str, int]:
    """Return how deep each parameter of an encoder lies, from 0 at the stem, by names in order of definition.

    The first number in a name is that of its level: ``levels.2`` and ``down2`` lie at 3. Parameters without a
    number belong to the stem where they come before all numbered ones, and else to the deepest level, as a
    last norm does.
    """
    numbers = [re.search(r"\d+", name) for name in names]
    found = [None if number is None else 1 + int(number[0]) for number in numbers]
    deepest, depths, is_stem = max((depth for depth in found if depth is not None), default=0), {}, True
    for name, depth in zip(names, found, strict=True):
        is_stem = is_stem and depth is None
        depths[name] = depth if depth is not None else (0 if is_stem else deepest)
    return depths


def total_strides(steps: Sequence[Shape]) -> tuple[Shape, ...]:
    """Voxels of input per feature along (D, H, W) before the first step, after it, ... and after the last."""
    return tuple(accumulate(steps, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2]), initial=(1, 1, 1)))


def differences(recorded: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> list[str]:
    """Say of each option that shapes do not tell where weights have it otherwise than this network."""
    recorded = recorded or {}
    return [
        f"Warning: the weights are of a network with {option}={recorded[option]!r} and this one has "
        f"{value!r}, so it does not compute what they learnt; create it with theirs."
        for option, value in ours.items()
        if recorded.get(option, value) != value
    ]


class SegmentationModel(nn.Module):
    """A backbone with a segmentation head: patch (B, C, D, H, W) to logits (B, K, D, H, W).

    Args:
        backbone: the features.
        num_classes: K, background included.
        deep_supervision: return a list of logits, finest first, in train and eval mode alike.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, deep_supervision: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        num_outputs = len(backbone.channels) if deep_supervision else 1
        self.head = backbone.build_head(num_classes, num_outputs=num_outputs)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, D, H, W), or with deep supervision a list of them, finest first.

        Raises:
            ConfigError: the network has a fixed input size and the patch has another.
        """
        shape = triple(x.shape[2:])
        logits = self.head(self.backbone(pad_to_fit(x, self.backbone)))
        cropped = [
            crop_to(level, [-(-side // stride) for side, stride in zip(shape, strides, strict=True)])
            for level, strides in zip(logits, self.backbone.strides, strict=False)
        ]
        return cropped if self.deep_supervision else cropped[0]

    def keep_finest(self) -> SegmentationModel:
        """Drop the outputs that only deep supervision uses, in place; returns the model."""
        self.deep_supervision = False
        self.head.levels = self.head.levels[:1]
        return self


def pad_to_fit(x: Tensor, backbone: Backbone) -> Tensor:
    """Zero-pad a patch (B, C, D, H, W) behind its last voxels to a size the backbone takes."""
    shape = triple(x.shape[2:])
    if backbone.input_size is not None and shape != backbone.input_size:
        raise ConfigError(
            f"{type(backbone).__name__} was built for patches of {backbone.input_size} voxels and got "
            f"{shape}: its attention is laid out for one size. Create it with patch_size="
            f"{shape}, or cut patches of {backbone.input_size}."
        )
    padding = [-side % divisor for side, divisor in zip(shape, backbone.min_divisor, strict=True)]
    if not any(padding):
        return x
    return F.pad(x, [0, padding[2], 0, padding[1], 0, padding[0]])


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Drop the voxels of (B, K, D, H, W) behind ``shape``."""
    return x[:, :, : shape[0], : shape[1], : shape[2]]


@dataclass(frozen=True)
class Demand:
    """What a network asks of memory and patches; known before it is built.

    Attributes:
        saved: bytes that a training step keeps for each voxel of a patch, those for each class left out; in
            float32 on 64^3 voxels (primus-l: 32^3), measured with ``benchmarks/activation_memory.py``. Mixed
            precision keeps less.
        multiple: what the sides of a patch are multiples of.
        is_fixed: whether weights are bound to the patch they were trained on.
        width: first of the option ``channels`` as measured, where what is saved grows in proportion to it.
        recomputed: what is saved likewise, at most, where blocks are computed twice instead of kept
            (``training.recompute_activations``), on 32^3 voxels (pctnet: 64^3); None where not measured.
    """

    saved: int
    multiple: int
    is_fixed: bool = False
    width: int | None = None
    recomputed: int | None = None

    def kept(self, *, recompute: bool) -> int:
        """Bytes that a training step keeps for each voxel, with or without computing blocks twice."""
        return self.recomputed if recompute and self.recomputed is not None else self.saved


UNKNOWN_DEMAND = Demand(10_000, 32)
"""Taken for a network that was not measured: more than any that was."""


class Networks(Registry[Callable[..., Backbone]]):
    """Builders of backbones, ``(in_channels, patch_size, **options) -> Backbone``, and what these demand."""

    def __init__(self) -> None:
        super().__init__("network", "misfm.models")
        self._demands: dict[str, Demand] = {}

    def register(
        self, *names: str, demand: Demand = UNKNOWN_DEMAND
    ) -> Callable[[Callable[..., Backbone]], Callable[..., Backbone]]:
        """Decorate a builder with the names it is known by, and say what its networks demand."""
        self._demands.update(dict.fromkeys(names, demand))
        return super().register(*names)

    def demand(self, name: str) -> Demand:
        """What the network called ``name`` demands, without building it; unknown ones get the most."""
        self._import_all()
        return self._demands.get(name, UNKNOWN_DEMAND)


NETWORKS = Networks()
"""All networks by name."""
