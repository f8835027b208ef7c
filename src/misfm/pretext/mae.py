"""MAE: predict the voxels of hidden blocks from the others.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), as Wald et al. (arXiv
2410.23132, 2412.17041) train 3D networks with it: 75 % of the blocks are hidden, the loss is the mean squared
error over hidden voxels.

- Networks that keep voxels on a grid see hidden voxels as 0, the mean of a z-scored scan, and reconstruct
  with their own decoder. Published: blocks of 16^3 in patches of 160^3.
- Primus does not see hidden tokens at all: they are dropped after embedding. The encoded rest goes back to
  its places, a learnt token fills the gaps, and two more blocks, not part of the backbone, lead to the
  patch decoder. Published: blocks of one token, ``block_size: [8, 8, 8]``.

Departures from nnssl: patches are not rotated, scaled or mirrored; the loss counts the tokens that were
dropped and not their mirror images across two axes; padding has no loss.

Fits every network with a decoder.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from misfm.models.base import Backbone, crop_to, pad_to_fit
from misfm.models.eva import INIT_STD, EvaBlock
from misfm.models.primus import Primus
from misfm.pretext.base import PRETEXTS
from misfm.pretext.masks import MaskedBlocks
from misfm.pretext.tokens import hidden_tokens, num_hidden_tokens, require_whole_tokens

DECODER_DEPTH = 2


@PRETEXTS.register("mae")
class MAE(MaskedBlocks):
    """Masked reconstruction; see the module's docstring."""

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Intensities for each voxel.

        Raises:
            ConfigError: the blocks are not made of whole tokens of a Primus.
        """
        if not isinstance(backbone, Primus):
            return VoxelModel(backbone)
        require_whole_tokens(self, backbone)
        return TokenModel(backbone, num_hidden_tokens(self, backbone))


class VoxelModel(nn.Module):
    """Patch (B, C, D, H, W) in which hidden voxels are 0 -> patch of the same shape."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = backbone.build_head(backbone.in_channels, num_outputs=1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Intensities of all voxels; 0 says enough about what is hidden."""
        finest: Tensor = self.head(self.backbone(pad_to_fit(x, self.backbone)))[0]
        return crop_to(finest, x.shape[2:])


class TokenModel(nn.Module):
    """Patch (B, C, D, H, W) and mask of hidden voxels (B, D, H, W) -> patch of the same shape.

    Args:
        backbone: with tokens.
        num_hidden: how many of these are hidden in each sample; counting them would wait for the device.
    """

    def __init__(self, backbone: Primus, num_hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_hidden = num_hidden
        self.decoder = TokenDecoder(backbone)
        self.head = backbone.build_head(backbone.in_channels, num_outputs=1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Intensities of all voxels; equally many tokens are hidden in each sample."""
        encoder = self.backbone.encoder
        gone = hidden_tokens(encoder, hidden)
        kept = gone.int().argsort(dim=1, stable=True)[:, : gone.shape[1] - self.num_hidden]
        encoded = encoder.encode(encoder.embed(pad_to_fit(x, self.backbone)), kept)
        decoded = self.decoder(encoded, kept, encoder.rotation)
        finest: Tensor = self.head([encoder.to_grid(decoded)])[0]
        return finest


class TokenDecoder(nn.Module):
    """Kept tokens (B, K, E) -> all tokens (B, N, E), by two blocks of the encoder's kind."""

    def __init__(self, backbone: Primus) -> None:
        super().__init__()
        encoder = backbone.encoder
        _, num_tokens, channels = encoder.pos_embed.shape
        self.mask_token = nn.Parameter(torch.empty(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, channels))
        self.blocks = nn.ModuleList(
            EvaBlock(channels, channels // encoder.head_dim) for _ in range(DECODER_DEPTH)
        )
        self.norm = nn.LayerNorm(channels)
        for number, block in enumerate(self.blocks, start=1):
            cast(EvaBlock, block).initialise(number)
        for parameter in (self.mask_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD)

    def forward(self, kept_tokens: Tensor, kept: Tensor, rotation: Tensor) -> Tensor:
        """Put the tokens back to their places ``kept`` (B, K) int64 and decode them with the rest."""
        batch_size, _, channels = kept_tokens.shape
        filled = self.mask_token.to(kept_tokens.dtype).expand(batch_size, self.pos_embed.shape[1], channels)
        tokens = filled.scatter(1, kept[..., None].expand(-1, -1, channels), kept_tokens) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return cast(Tensor, self.norm(tokens))
