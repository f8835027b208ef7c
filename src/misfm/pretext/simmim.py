"""SimMIM: predict the voxels of hidden tokens, which the transformer sees as one learnt token.

Xie et al., "SimMIM" (arXiv 2111.09886), as the OpenMind benchmark (arXiv 2412.17041) trains Primus with it:
75 % of the tokens are hidden, each replaced after embedding and before positions are added; all are encoded,
and the patch decoder predicts. The loss is the mean squared error over hidden voxels.

Departures: squared instead of absolute error (with nnssl, not the paper); patches are not rotated, scaled
or mirrored; padding has no loss.

Fits Primus only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misfm.models.base import Backbone, pad_to_fit
from misfm.models.eva import INIT_STD
from misfm.models.primus import TOKEN_SIDE, Primus
from misfm.pretext.base import PRETEXTS
from misfm.pretext.masks import MaskedBlocks
from misfm.pretext.tokens import hidden_tokens, require_primus, require_whole_tokens
from misfm.settings import PositiveShape


@PRETEXTS.register("simmim")
class SimMIM(MaskedBlocks):
    """Masked reconstruction with replaced tokens; see the module's docstring."""

    block_size: PositiveShape | None = (TOKEN_SIDE, TOKEN_SIDE, TOKEN_SIDE)
    """Voxels of a block along (D, H, W), multiples of 8 (published: 8^3, one token)."""

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Intensities for each voxel.

        Raises:
            ConfigError: the network has no tokens, or the blocks are not made of whole ones.
        """
        primus = require_primus(backbone, "simmim")
        require_whole_tokens(self, primus)
        return ReplacingModel(primus)


class ReplacingModel(nn.Module):
    """Patch (B, C, D, H, W) and mask of hidden voxels (B, D, H, W) -> patch of the same shape."""

    def __init__(self, backbone: Primus) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.empty(backbone.channels[0]))
        self.head = backbone.build_head(backbone.in_channels, num_outputs=1)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Intensities of all voxels."""
        encoder = self.backbone.encoder
        tokens = encoder.embed(pad_to_fit(x, self.backbone))
        gone = hidden_tokens(encoder, hidden)[..., None]
        encoded = encoder.encode(torch.where(gone, self.mask_token.to(tokens.dtype), tokens))
        finest: Tensor = self.head([encoder.to_grid(encoded)])[0]
        return finest
