"""Batches on their way to the network: patches as they are read, where they lie, and inputs with targets.

Nothing on the way waits for the device (a GPU is to compute all the time): the patches go there first, and
everything that decides what is done to them stays on the CPU, from where it follows by :func:`sent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from misfm.errors import ConfigError
from misfm.volume import FloatTriple, Shape


class Share(NamedTuple):
    """Which part of something is a process's own, where several make it together."""

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> slice:
        """Return which of ``count`` rows these are; those of all ranks follow each other."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


WHOLE = Share()


class Shareable(Protocol):
    """Raw batches of which a share of the samples can be made alone."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of a batch, or of each of its parts of which every process gets a share of its own."""
        ...

    def share(self, index: int, share: Share) -> Any:
        """Return a share of batch ``index``, which holds the very samples of the whole one."""
        ...


@dataclass(frozen=True)
class BatchShares(Dataset[Any]):
    """One process's share of each batch.

    Raises:
        ConfigError: the samples of a batch are no multiple of the number of processes.
    """

    batches: Shareable
    own: Share

    def __post_init__(self) -> None:
        for size in self.batches.sizes:
            if size % self.own.size:
                raise ConfigError(
                    f"{self.own.size} processes cannot share {size} samples of a batch equally: set a "
                    "batch_size that is a multiple of the number of processes."
                )

    def __getitem__(self, index: int) -> Any:
        return self.batches.share(index, self.own)


def sent(tensor: Tensor, like: torch.device | Tensor) -> Tensor:
    """Return ``tensor`` on a device, without waiting for what that is doing.

    Args:
        tensor: on the CPU, or there already.
        like: the device, or a tensor that lies there and whose type is wanted, too.
    """
    if isinstance(like, Tensor):
        return tensor.to(like.device, like.dtype, non_blocking=True)
    return tensor.to(like, non_blocking=True)


@dataclass(frozen=True)
class Placement:
    """Where the patches of a batch lie, on the CPU.

    Attributes:
        valid: (B, N, 2, 3) int64, first voxel and first voxel behind of what lies inside the volume; the rest
            of a patch is padding.
        origin: (B, N, 3) float32, mm along (D, H, W) from the first voxel of the volume to that of the patch.
        spacing: (B, N, 3) float32, mm per voxel along (D, H, W).
        labels: (B, N, D, H, W) int64, label maps of generated volumes; None for tasks that do not ask.
        hidden: (B, N, D, H, W) bool, voxels that were removed to make the patient unknown, such as the face;
            None where no volume has any. What they show counts in no loss.
        read: (B, N, C, D, H, W), the patches as they were read, where they have gone to another device since.
    """

    valid: Tensor
    origin: Tensor
    spacing: Tensor
    labels: Tensor | None = None
    hidden: Tensor | None = None
    read: Tensor | None = None

    @classmethod
    def whole(
        cls, batch_size: int, num_patches: int, size: Shape, spacing: float | FloatTriple = 1.0
    ) -> Placement:
        """Patches without padding, each at the first voxel of its volume.

        Args:
            batch_size: B.
            num_patches: N, patches of one volume.
            size: voxels of a patch along (D, H, W).
            spacing: mm per voxel, one number or one along each of (D, H, W).
        """
        origin = torch.zeros(batch_size, num_patches, 3)
        valid = torch.tensor([(0, 0, 0), size]).expand(batch_size, num_patches, 2, 3)
        return cls(valid, origin, torch.ones_like(origin) * torch.tensor(spacing))

    def real(self, size: Shape, device: torch.device | None = None) -> Tensor:
        """Mask (B, N, *size) of the voxels that are neither padding nor hidden, for patches of that size.

        Args:
            size: voxels of a patch along (D, H, W).
            device: where the mask is needed; None is the CPU.
        """
        device = device or torch.device("cpu")
        mask = torch.ones(*self.valid.shape[:2], *size, dtype=torch.bool, device=device)
        for axis, side in enumerate(size):
            ticks = torch.arange(side)
            first, stop = self.valid[:, :, 0, axis, None], self.valid[:, :, 1, axis, None]
            inside = sent((ticks >= first) & (ticks < stop), device)
            mask &= inside.view(*inside.shape[:2], *[-1 if i == axis else 1 for i in range(3)])
        return mask if self.hidden is None else mask & ~sent(self.hidden, device)

    def rows(self, rows: slice) -> Placement:
        """Return some of the samples."""
        masks = (self.labels, self.hidden, self.read)
        return Placement(
            *(each[rows] for each in (self.valid, self.origin, self.spacing)),
            *(None if each is None else each[rows] for each in masks),
        )


class RawPatches(NamedTuple):
    """Unlabelled patches as they are read; a tuple, so that data loaders and devices know what to do with it.

    Attributes:
        patches: (B, N, C, D, H, W) float32, normalised intensities of N patches of each of B volumes.
        valid: as in :class:`Placement`, like the following.
        origin: millimetres.
        spacing: millimetres.
        labels: None where the volumes have none, or nobody asked for them.
        hidden: None where nothing was removed from any volume.
        read: None where the patches are as they were read.
    """

    patches: Tensor
    valid: Tensor
    origin: Tensor
    spacing: Tensor
    labels: Tensor | None = None
    hidden: Tensor | None = None
    read: Tensor | None = None

    @property
    def placement(self) -> Placement:
        """Where the patches lie, on the CPU, wherever they are themselves."""
        return Placement(*self[1:])

    def each(self, function: Callable[[Tensor], Tensor]) -> RawPatches:
        """Return what a function makes of each of the tensors."""
        return RawPatches._make(None if each is None else function(each) for each in self)


def with_images_on(raw: Any, device: torch.device) -> Any:
    """Send the images of a raw batch to a device, and leave all else of it on the CPU.

    Args:
        raw: a tuple that begins with images, such as :class:`RawPatches`, a tuple of such tuples, or images
            alone.
        device: to train on.
    """
    if isinstance(raw, Tensor):
        return sent(raw, device)
    images = raw[0]
    if not isinstance(images, Tensor):
        return tuple(with_images_on(part, device) for part in raw)
    if isinstance(raw, RawPatches):
        read = None if images.device == device else images
        return raw._replace(patches=sent(images, device), read=read)
    return (sent(images, device), *raw[1:])


@dataclass(frozen=True)
class Batch:
    """What the network sees and what it should answer; tasks with more to remember subclass it.

    Attributes:
        inputs: (B, C, D, H, W) float, on the training device; B may be a multiple of that of the patches.
        targets: what the loss compares with; for class maps (B, D, H, W) int64.
        context: further arguments of the model, such as which tokens it may see.
    """

    inputs: Tensor
    targets: Tensor
    context: tuple[Tensor, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the batch of the samples of all parts, each field joined along its first axis.

        To be overridden where a field counts the inputs, such as with the numbers of crops.
        """
        if len(parts) == 1:
            return parts[0]
        return cls(
            **{each.name: _joined([getattr(part, each.name) for part in parts]) for each in fields(cls)}
        )

    def rows(self, share: Share) -> Self:
        """Return a share of the samples, of each field as many rows as it has for them."""
        return replace(self, **{each.name: _rows(getattr(self, each.name), share) for each in fields(self)})


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, tuple):
        return tuple(_joined(column) for column in zip(*values, strict=True))
    if isinstance(first, Batch):
        return type(first).joined(values)
    return first


def _rows(value: Any, share: Share) -> Any:
    if isinstance(value, Tensor):
        return value[share.of(len(value))]
    if isinstance(value, tuple):
        return tuple(_rows(each, share) for each in value)
    return value.rows(share) if isinstance(value, Batch) else value
