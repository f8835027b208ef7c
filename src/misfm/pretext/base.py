"""The contract every pretext task follows; a new task is one new file in this folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from misfm.models.base import Backbone
from misfm.registry import Registry
from misfm.settings import Settings
from misfm.volume import Shape


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
    """

    valid: Tensor
    origin: Tensor
    spacing: Tensor
    labels: Tensor | None = None
    hidden: Tensor | None = None

    def real(self, size: Shape) -> Tensor:
        """Mask (B, N, *size) of the voxels that are neither padding nor hidden, for patches of that size."""
        mask = torch.ones(*self.valid.shape[:2], *size, dtype=torch.bool)
        for axis, side in enumerate(size):
            ticks = torch.arange(side)
            first, stop = self.valid[:, :, 0, axis, None], self.valid[:, :, 1, axis, None]
            inside = (ticks >= first) & (ticks < stop)
            mask &= inside.view(*inside.shape[:2], *[-1 if i == axis else 1 for i in range(3)])
        return mask if self.hidden is None else mask & ~self.hidden


@dataclass(frozen=True)
class PretextBatch:
    """What the network sees and what it should answer; tasks with more to remember subclass it.

    Attributes:
        inputs: (B, C, D, H, W) float, on the training device; B may differ from that of the patches.
        targets: what the task's loss compares with; for class maps (B, D, H, W) int64.
        context: further arguments of the model, such as which tokens it may see.
    """

    inputs: Tensor
    targets: Tensor
    context: tuple[Tensor, ...] = ()


class PretextTask(Settings):
    """A self-supervised task; its fields are its options.

    Attributes:
        num_patches: how many patches of one volume make a sample.
        trains_decoder: whether the decoder learns, too; where not, weights transfer as encoder.
        needs_labels: whether it learns from the label maps that generated volumes come with.
        mixes_generated: whether half of its volumes are generated ones with label maps; in those of scans
            every voxel is :data:`misfm.losses.IGNORE`.
    """

    num_patches: ClassVar[int] = 1
    trains_decoder: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    mixes_generated: ClassVar[bool] = False

    @property
    def transfer(self) -> Literal["all", "encoder"]:
        """What of the weights is worth transferring: an untrained decoder is not."""
        return "all" if self.trains_decoder else "encoder"

    def source_size(self, patch_size: Shape) -> Shape:
        """Voxels along (D, H, W) to cut from a volume for a network input of ``patch_size``."""
        return patch_size

    @abstractmethod
    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> PretextBatch:
        """Turn raw patches into inputs and targets, on the device the patches are on.

        Args:
            patches: (B, N, C, *source_size) float normalised intensities; never written to.
            placement: where they lie in their volumes, and what of them is padding.
            patch_size: (D, H, W) of the inputs to return.
            generator: a CPU generator, the only source of randomness.
        """

    @abstractmethod
    def build_model(self, backbone: Backbone) -> nn.Module:
        """Put the task's own head on a backbone, which becomes the module's ``backbone``.

        The module is called with a batch's inputs and context; what it returns goes to ``loss``.

        Raises:
            ConfigError: the task does not fit this network; says why.
        """

    def after_step(self, model: nn.Module) -> None:
        """Do what follows an optimiser step, such as moving a teacher; nothing by default."""

    @abstractmethod
    def loss(self, outputs: Any, batch: PretextBatch) -> Mapping[str, Tensor]:
        """Named terms whose sum is minimised; each a scalar that carries gradients."""

    @abstractmethod
    def score(self, outputs: Any, batch: PretextBatch) -> Mapping[str, float]:
        """Numbers a person can read, beside what chance would reach."""


PRETEXTS: Registry[type[PretextTask]] = Registry("pretext task", "misfm.pretext")
