"""The contract every network follows: a backbone (encoder and decoder) and a separate head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        encoder: module, (B, C, D, H, W) -> list of features, high to low resolution.
        decoder: module, list of encoder features -> list of features, finest first.
        channels: feature channels of each level of the decoder's output, finest first.
        strides: voxels of input per feature along (D, H, W), one triple for each level, finest first.
        input_size: the only patch size the network takes, or None where any multiple of ``min_divisor`` fits.
        min_divisor: what each side of a patch is padded to a multiple of.
        grid: tokens along (D, H, W), for which position embeddings are laid out; None without tokens.
        options: all options of its builder as JSON has them, with what followed from the patch size resolved:
            what builds the same network for any patch size. Builders set what they resolve, and
            :func:`misfm.models.create` adds the rest.
    """

    encoder: nn.Module
    decoder: nn.Module
    channels: tuple[int, ...]
    strides: tuple[Shape, ...]
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

    def token_axes(self, recorded: Mapping[str, Any]) -> Shape:
        """The axes of ``grid`` in the order in which it is flattened once :meth:`adopt` took ``recorded``."""
        return (0, 1, 2)

    def adopt(self, recorded: Mapping[str, Any]) -> list[str]:
        """Settle what the options left to the weights; called when a transfer can no longer fail.

        Args:
            recorded: options of the network the weights were trained in, as far as known.

        Returns:
            Where this network differs in what shapes do not tell, in sentences for the report.
        """
        return []


def differences(recorded: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Say of each option that shapes do not tell where weights have it otherwise than this network."""
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


def image_channels(backbone: Backbone) -> int:
    """Image channels a backbone was built for: the input channels of its first convolution."""
    return next(module.in_channels for module in backbone.encoder.modules() if isinstance(module, nn.Conv3d))


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


NETWORKS: Registry[Callable[..., Backbone]] = Registry("network", "misfm.models")
"""Builders of backbones: ``(in_channels, patch_size, **options) -> Backbone``."""
