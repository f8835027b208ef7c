"""Vectors for crops and voxels, and what is asked of them: that two views of the same place are alike.

Shared by the contrastive tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from misfm import world
from misfm.errors import ConfigError
from misfm.losses import batch_mean, batch_ratio
from misfm.models.base import Backbone, crop_to, pad_to_fit

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""Output channels of each linear layer."""


def encode(backbone: Backbone, x: Tensor) -> list[Tensor]:
    """Encoder features of a patch (B, C, D, H, W), without those of voxels that pad it to a valid size."""
    padded = pad_to_fit(x, backbone)
    features: list[Tensor] = backbone.encoder(padded)
    return [
        crop_to(
            feature,
            [
                -(-side * length // whole)
                for side, length, whole in zip(x.shape[2:], feature.shape[2:], padded.shape[2:], strict=True)
            ],
        )
        for feature in features
    ]


def projector(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers (N, in_channels) -> (N, widths[-1]); all but the last followed by a norm and ReLU.

    The norm brings each vector to mean 0 and variance 1 on its own and has no weights, as the instance norm
    in nnssl does.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise([in_channels, *widths]):
        layers += [nn.Linear(before, after), nn.LayerNorm(after, elementwise_affine=False), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class EmbeddingModel(nn.Module):
    """Patch (B, C, D, H, W) -> vector (B, widths[-1]): global averages of all encoder features, projected."""

    def __init__(self, backbone: Backbone, widths: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector(sum(backbone.encoder_channels), widths)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features = encode(self.backbone, x)
        return cast(Tensor, self.projector(torch.cat([feature.mean((2, 3, 4)) for feature in features], 1)))


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine in -1..1 of all pairs of vectors, (…, N, E) and (…, M, E) -> (…, N, M), in float32."""
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).mT


def partners(count: int, device: torch.device) -> Tensor:
    """Index of each embedding's other view, (count,), where the two views of a place follow each other."""
    return torch.arange(count, device=device) ^ 1


def steps_to_partners(count: int, device: torch.device) -> Tensor:
    """How many places each embedding's other view stands behind it, (count,): 1, -1, 1, -1 and so on."""
    return partners(count, device) - torch.arange(count, device=device)


def nt_xent(embeddings: Tensor, temperature: float) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy (SimCLR, arXiv 2002.05709, equation 1), a scalar.

    .. math::
        L = -\operatorname{mean}_i \log
            \frac{\exp(\cos(z_i, z_{p(i)}) / T)}{\sum_{j \ne i} \exp(\cos(z_i, z_j) / T)}

    Args:
        embeddings: (2N, E), pairs of views one after the other: z_i and its partner p(i). Those of other
            processes are compared with, too.
        temperature: T.

    Raises:
        ConfigError: a single pair, which has nothing to differ from.
    """
    logits, others = _compared(embeddings)
    require_others(logits.shape[1] // 2, "A contrast")
    return batch_ratio(F.cross_entropy(logits / temperature, others, reduction="sum"), len(logits))


def matching_score(embeddings: Tensor) -> Mapping[str, float]:
    """How often the most similar of the other 2N - 1 vectors is the other view, and how often by chance."""
    logits, others = _compared(embeddings.detach())
    hits = batch_mean((logits.argmax(1) == others).float())
    return {"matching_accuracy": float(hits), "chance_accuracy": 1 / (logits.shape[1] - 1)}


def _compared(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of this process's vectors with all (n, 2N), and the index of each one's partner (n,).

    Nothing is its own partner.
    """
    every = world.gathered(embeddings)
    own = torch.arange(len(embeddings), device=every.device)
    owners = world.gathered(torch.full_like(own, world.rank()))
    before = (owners < world.rank()).sum()
    itself = (own + before)[:, None] == torch.arange(len(every), device=every.device)
    return cosines(embeddings, every).masked_fill(itself, -torch.inf), partners(len(own), own.device) + before


def require_others(count: int, task: str) -> None:
    """Refuse a batch in which a pair has no other pair to differ from.

    Raises:
        ConfigError: fewer than two pairs.
    """
    if count < 2:
        raise ConfigError(
            f"{task} tells the pairs of a batch apart and got a single one; set batch_size to 2 or more."
        )


def pair_up(crops: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Stack pairs of (C, D, H, W) into (2N, C, D, H, W), the views of each pair one after the other."""
    return torch.stack([view for pair in crops for view in pair])
