"""Tensors of one network made to fit another: image channels, kernels, position embeddings.

Each rule takes a tensor, what it is to fill, and returns the adapted tensor with how it was done, or None
where it does not apply. :func:`adapt` tries them in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor

from misfm.volume import Shape

ENCODER = "backbone.encoder."
POSITIONS = "pos_embed"


@dataclass(frozen=True)
class AdaptContext:
    """What the rules need to know besides shapes.

    Attributes:
        stem: name of the weight that takes the image.
        grid: tokens of the network along (D, H, W); None for a network without tokens.
        source_grid: tokens along (D, H, W) the source was trained with, where recorded.
        token_axes: the axes of both grids in the order in which they are flattened into tokens.
    """

    stem: str
    grid: Shape | None = None
    source_grid: Shape | None = None
    token_axes: Shape = (0, 1, 2)


def adapt(name: str, tensor: Tensor, target: Tensor, context: AdaptContext) -> tuple[Tensor, str] | None:
    """A tensor with the shape of ``target`` and how it was made; None where no rule applies."""
    notes: list[str] = []
    for rule in RULES:
        result = rule(name, tensor, target, context)
        if result is not None:
            tensor = result[0]
            notes.append(result[1])
    return (tensor, ", ".join(notes)) if notes and tensor.shape == target.shape else None


def with_channels(weight: Tensor, num_channels: int) -> Tensor:
    """A stem's weight (out, in, ...) for another number of image channels.

    Each new channel gets the sum over the old ones divided by ``num_channels``, so that an image repeated
    over its channels gives what it gave before.
    """
    shared = weight.float().sum(dim=1, keepdim=True) / num_channels
    return shared.expand(-1, num_channels, *weight.shape[2:])


def image_channels(
    name: str, tensor: Tensor, target: Tensor, context: AdaptContext
) -> tuple[Tensor, str] | None:
    """Adapt what takes the image to another number of image channels."""
    if name != context.stem or tensor.dim() != target.dim() or len(tensor) != len(target):
        return None
    if tensor.shape[1] == target.shape[1]:
        return None
    return (
        with_channels(tensor, target.shape[1]),
        f"from {tensor.shape[1]} to {target.shape[1]} image channels",
    )


def kernel(name: str, tensor: Tensor, target: Tensor, context: AdaptContext) -> tuple[Tensor, str] | None:
    """Average a kernel over the axes in which the target's is one voxel wide (nnU-Net's dynamic transfer)."""
    if tensor.dim() != 5 or target.dim() != 5 or tensor.shape[:2] != target.shape[:2]:
        return None
    axes = [axis for axis in (2, 3, 4) if target.shape[axis] == 1 < tensor.shape[axis]]
    if not axes:
        return None
    sizes = "x".join(map(str, target.shape[2:]))
    return tensor.float().mean(dim=axes, keepdim=True), f"kernel averaged to {sizes}"


def positions(name: str, tensor: Tensor, target: Tensor, context: AdaptContext) -> tuple[Tensor, str] | None:
    """Resize a learnt position embedding (1, tokens, channels) from grid to grid, trilinearly."""
    new = context.grid
    if not name.endswith(POSITIONS) or new is None or tensor.dim() != 3 or tensor.shape[2] != target.shape[2]:
        return None
    unknown = context.source_grid is None and tensor.shape == target.shape
    old = new if unknown else source_grid(tensor.shape[1], context.source_grid)
    if old is None or old == new:
        return None
    flattened = [[grid[axis] for axis in context.token_axes] for grid in (old, new)]
    volume = tensor.float().transpose(1, 2).reshape(1, -1, *flattened[0])
    resized = F.interpolate(volume, size=flattened[1], mode="trilinear", align_corners=False)
    sizes = " to ".join("x".join(map(str, grid)) for grid in (old, new))
    return resized.flatten(2).transpose(1, 2), f"position grid resized from {sizes}"


def source_grid(num_tokens: int, recorded: Shape | None) -> Shape | None:
    """The recorded grid if it has that many tokens, else the cube that has; None if there is none."""
    if recorded is not None and prod(recorded) == num_tokens:
        return recorded
    side = round(num_tokens ** (1 / 3))
    return (side, side, side) if side**3 == num_tokens else None


RULES: tuple[Callable[[str, Tensor, Tensor, AdaptContext], tuple[Tensor, str] | None], ...] = (
    image_channels,
    kernel,
    positions,
)
