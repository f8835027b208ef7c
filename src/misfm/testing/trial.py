"""A pretext task with a small network that it takes and raw patches for it, to check it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from misfm.batches import Batch, Placement
from misfm.errors import ConfigError
from misfm.losses import IGNORE
from misfm.models import Backbone, create
from misfm.pretext import PretextTask
from misfm.seeding import generator_for
from misfm.volume import Shape

VOLUMES, CHANNELS, CLASSES = 3, 2, 3
NETWORKS: tuple[tuple[str, dict[str, Any], Shape], ...] = (
    ("unet", {"channels": (4, 8, 8)}, (12, 16, 14)),
    ("primus", {"embed_dim": 24, "depth": 2, "num_heads": 2}, (16, 16, 24)),
)
"""Networks and patch sizes to check a task with: the first that it takes."""


class Trial:
    """A task with a network that it takes, and raw patches for it.

    Args:
        task: to be checked.
        fill: the value of all voxels; random ones by default.
        volumes: how many, each with patches of its own.
    """

    def __init__(self, task: PretextTask, fill: float | None = None, volumes: int = VOLUMES) -> None:
        self.task = task
        self.network, self.options, self.patch_size = next(each for each in NETWORKS if takes(task, *each))
        shape = (volumes, task.num_patches, CHANNELS, *task.source_size(self.patch_size))
        random = torch.randn(shape, generator=generator_for("patches"))
        self.patches = random if fill is None else torch.full_like(random, fill)
        self.placement = Placement.whole(volumes, task.num_patches, shape[3:], spacing=(3.0, 1.0, 0.5))
        if task.needs_labels or task.mixes_generated:
            masks = (volumes, task.num_patches, *shape[3:])
            labels = torch.randint(CLASSES, masks, generator=generator_for("labels"))
            if task.mixes_generated:
                labels[:-1] = IGNORE  # scans
            self.placement = replace(self.placement, labels=labels)

    def without_half(self, what: str) -> Tensor:
        """Make half of each patch hidden or padding; returns a mask (B, N, D, H, W) of what is gone."""
        gone = torch.zeros_like(self.patches[:, :, 0], dtype=torch.bool)
        half = gone.shape[-1] // 2
        gone[..., half:] = True
        if what == "hidden":
            self.placement = replace(self.placement, hidden=gone)
        else:
            valid = self.placement.valid.clone()
            valid[..., 1, 2] = half
            self.placement = replace(self.placement, valid=valid)
        return gone

    def backbone(self, seed: int = 0) -> Backbone:
        """The network with random weights, without a head."""
        return build(self.network, self.options, self.patch_size, seed)

    def model(self, seed: int = 0) -> torch.nn.Module:
        """The task's model."""
        return self.task.build_model(self.backbone(seed))

    def prepare(self, patches: Tensor | None = None, seed: int = 0) -> Batch:
        """The task's batch, by default of the raw patches."""
        patches = self.patches if patches is None else patches
        return self.task.prepare(patches, self.placement, self.patch_size, generator_for("draws", seed))

    def run(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Terms of the loss."""
        return self.task.loss(model(batch.inputs, *batch.context), batch)


def build(network: str, options: dict[str, Any], patch_size: Shape, seed: int = 0) -> Backbone:
    """A small network without its head."""
    torch.manual_seed(seed)
    arguments = {"in_channels": CHANNELS, "num_classes": CLASSES, **options}
    return create(network, patch_size=patch_size, **arguments).backbone


def takes(task: PretextTask, network: str, options: dict[str, Any], patch_size: Shape) -> bool:
    """Whether a task can be put on a network."""
    try:
        task.build_model(build(network, options, patch_size))
    except ConfigError:
        return False
    return True
