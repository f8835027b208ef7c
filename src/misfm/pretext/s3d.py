r"""S3D: predict hidden blocks with an encoder that computes on visible voxels only (SparK in 3D).

Tian et al., "Designing BERT for Convolutional Networks" (SparK, arXiv 2301.03580), for 3D U-Nets by Wald et
al. (arXiv 2410.23132). A plain convolutional encoder sees a hidden block as a constant and lets it flow into
its surroundings; here

1. a feature is active if it stands for at least one visible voxel; after each convolution and pooling of
   the encoder inactive features are set to 0, so holes neither close nor leak with depth;
2. instance norm takes mean and variance over active features only;
3. before the decoder each level is densified: normalised as in 2, inactive features replaced by a learnt
   token, then a 3x3x3 convolution, which the finest level, where it would cost most, goes without.

The layers stay where they are: hooks put 1 and 2 on them while this task's model runs, and the backbone it
leaves behind is a plain one.

Departures from nnssl: where a feature of a coarse level stands for several blocks, it is inactive if all of
them are hidden (nnssl: never); patches are not rotated, scaled or mirrored; padding has no loss.

Fits encoders made of convolution, instance norm, pooling and activations, such as ``unet``, ``fmunet`` and
``resenc``; batch norm and attention mix what is visible with what is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.base import Backbone, crop_to, pad_to_fit
from misfm.pretext.base import PRETEXTS
from misfm.pretext.masks import MaskedBlocks

SPREADING = (nn.Conv3d, nn.AvgPool3d, nn.MaxPool3d, nn.InstanceNorm3d)
"""Layers after which inactive features have to be set to 0."""
KEEPING = (nn.Identity, nn.Dropout, nn.Dropout3d, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU)
"""Layers that leave 0 at 0."""
SPACE = (2, 3, 4)
TOKEN_DEVIATION = 0.02


@PRETEXTS.register("s3d")
class S3D(MaskedBlocks):
    """Masked reconstruction by a sparse encoder; see the module's docstring."""

    def build_model(self, backbone: Backbone) -> nn.Module:
        """A sparse run of the encoder, densification, and intensities for each voxel.

        Raises:
            ConfigError: the encoder has layers without a sparse counterpart.
        """
        return SparseModel(backbone)


class SparseModel(nn.Module):
    """Visible patch (B, C, D, H, W) and mask of hidden voxels (B, D, H, W) -> patch of the same shape."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        require_sparse(backbone)
        self.backbone = backbone
        finest, *coarser = backbone.encoder_channels
        self.densify = nn.ModuleList(
            [Densify(finest, nn.Identity())]
            + [Densify(width, nn.Conv3d(width, width, 3, padding=1, bias=False)) for width in coarser]
        )
        self.head = backbone.build_head(backbone.in_channels, num_outputs=1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Intensities of all voxels."""
        active = Activity(pad_to_fit((~hidden)[:, None].float(), self.backbone))
        with sparse(self.backbone.encoder, active):
            features = self.backbone.encoder(pad_to_fit(x, self.backbone))
        dense = [
            densify(feature, active.at(feature))
            for densify, feature in zip(self.densify, features, strict=True)
        ]
        finest: Tensor = self.head(self.backbone.decoder(dense))[0]
        return crop_to(finest, x.shape[2:])


class Densify(nn.Module):
    """Features (B, C, d, h, w) with holes -> features without, of the same shape.

    Args:
        channels: C.
        mix: what follows once the holes are filled.
    """

    def __init__(self, channels: int, mix: nn.Module) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        bound = TOKEN_DEVIATION
        token = nn.init.trunc_normal_(torch.empty(1, channels, 1, 1, 1), std=bound, a=-bound, b=bound)
        self.token = nn.Parameter(token)
        self.mix = mix

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """Normalise, fill with the token where not ``active`` (B, 1, d, h, w) bool, mix."""
        filled = torch.where(active, sparse_norm(x, active, self.norm), self.token.to(x.dtype))
        return cast(Tensor, self.mix(filled))


class Activity:
    """Which features stand for visible voxels, at every resolution.

    Args:
        visible: (B, 1, D, H, W) float, 1 where the encoder's input is visible, else 0.
    """

    def __init__(self, visible: Tensor) -> None:
        self._visible = visible
        self._known: dict[torch.Size, Tensor] = {}

    def at(self, features: Tensor) -> Tensor:
        """Mask (B, 1, d, h, w) bool for features (B, C, d, h, w)."""
        size = features.shape[2:]
        if size not in self._known:
            self._known[size] = F.adaptive_max_pool3d(self._visible, list(size)).bool()
        return self._known[size]


@contextmanager
def sparse(encoder: nn.Module, active: Activity) -> Iterator[None]:
    """Let the layers of ``encoder`` compute on active features only, until the context ends."""

    def keep_active(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        mask = active.at(output)
        if isinstance(layer, nn.InstanceNorm3d):
            return sparse_norm(inputs[0], mask, layer)
        return output * mask

    handles = [
        layer.register_forward_hook(keep_active)
        for layer in encoder.modules()
        if isinstance(layer, SPREADING)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sparse_norm(x: Tensor, active: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    """Instance norm over active features; inactive ones stay 0.

    Args:
        x: (B, C, d, h, w), 0 where inactive.
        active: (B, 1, d, h, w) bool.
        norm: gives weight, bias and epsilon.
    """
    weight = active.float()
    count = weight.sum(SPACE, keepdim=True).clamp(min=1)
    mean = x.float().sum(SPACE, keepdim=True) / count
    centred = torch.addcmul(x.float(), mean, weight, value=-1)
    variance: Tensor = torch.linalg.vector_norm(centred, dim=SPACE, keepdim=True).square() / count
    scale = (variance + norm.eps).rsqrt()
    if not norm.affine:
        return (centred * scale).to(x.dtype)
    gain, bias = (parameter.view(1, -1, 1, 1, 1) for parameter in (norm.weight, norm.bias))
    normed: Tensor = torch.addcmul(centred * (scale * gain), bias, weight).to(x.dtype)
    return normed


def require_sparse(backbone: Backbone) -> None:
    """Raise ConfigError if the encoder has a layer that is known neither to keep 0 nor how to mask."""
    for layer in backbone.encoder.modules():
        if not any(layer.children()) and not isinstance(layer, SPREADING + KEEPING):
            raise ConfigError(
                f"The task s3d computes on visible voxels only, which the {type(layer).__name__} in "
                f"{type(backbone).__name__}'s encoder cannot: take a network of convolutions and instance "
                "norms, such as resenc or unet, or the task mae."
            )
