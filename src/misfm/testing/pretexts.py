"""What every pretext task must do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
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


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in the fields of a batch or placement, one after the other."""
    found: list[Tensor] = []
    for field in fields(value):
        content = getattr(value, field.name)
        found += [
            each
            for each in (content if isinstance(content, tuple) else (content,))
            if isinstance(each, Tensor)
        ]
    return found


def preparing_is_pure(task: PretextTask) -> None:
    """Neither patches nor placement are written to."""
    for what in ("hidden", "padding"):
        trial = Trial(task)
        trial.without_half(what)
        given = [trial.patches, *tensors_of(trial.placement)]
        before = [tensor.clone() for tensor in given]
        trial.prepare()
        assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


def the_generator_decides_everything(task: PretextTask) -> None:
    """Two batches are equal if their generators are; the global one is neither asked nor moved."""
    trial = Trial(task)
    torch.manual_seed(1)
    first = trial.prepare()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = trial.prepare()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(tensors_of(first), tensors_of(again), strict=True))
    assert not torch.equal(first.inputs, trial.prepare(seed=1).inputs)


def inputs_are_patches_for_the_network(task: PretextTask) -> None:
    """Finite float32 (B, C, D, H, W) of the size asked for, from each volume as many."""
    trial = Trial(task)
    inputs = trial.prepare().inputs
    assert len(inputs) % VOLUMES == 0
    assert inputs.shape[1:] == (CHANNELS, *trial.patch_size)
    assert inputs.dtype == torch.float32
    assert bool(inputs.isfinite().all())


def the_loss_reaches_what_transfers(task: PretextTask) -> None:
    """Terms are finite scalars with gradients, for all of the model but a decoder that does not transfer."""
    trial = Trial(task)
    backbone = trial.backbone()
    model = task.build_model(backbone)
    assert model.get_submodule("backbone") is backbone
    terms = trial.run(model, trial.prepare())
    assert terms
    assert all(term.shape == () and bool(term.isfinite()) and term.requires_grad for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    decoder = [name for name, _ in model.named_parameters() if name.startswith("backbone.decoder.")]
    reached = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and float(parameter.grad.abs().max()) > 0
    }
    missed = {name for name, _ in model.named_parameters()} - reached
    assert missed == (set() if task.trains_decoder else set(decoder))
    assert task.transfer == ("all" if task.trains_decoder else "encoder")


def the_score_stands_beside_chance(task: PretextTask) -> None:
    """Numbers, NaN where there is nothing to score; at least one is of chance: the batch alone gives it."""
    trial = Trial(task)
    batch = trial.prepare()
    with torch.no_grad():
        outputs = [trial.model(seed)(batch.inputs, *batch.context) for seed in (0, 1)]
    first, other = (task.score(output, batch) for output in outputs)
    assert all(isinstance(number, float) for number in first.values())
    assert not bool(torch.tensor(list(first.values())).isinf().any())
    assert len(first) > 1
    assert any(str(first[name]) == str(other[name]) for name in first), "no number to compare with"


def what_padding_and_hidden_voxels_show_is_in_no_loss(task: PretextTask) -> None:
    """For fixed outputs: other intensities there change no term, and elsewhere those of voxels do."""
    for what in ("hidden", "padding"):
        trial = Trial(task)
        gone = trial.without_half(what)
        batch, model = trial.prepare(), trial.model()
        there, elsewhere = (trial.prepare(trial.patches + 9 * mask[:, :, None]) for mask in (gone, ~gone))
        with torch.no_grad():
            outputs = model(batch.inputs, *batch.context)
        before, after, other = (
            {name: float(term) for name, term in task.loss(outputs, each).items()}
            for each in (batch, there, elsewhere)
        )
        assert after == before, what
        if batch.targets.is_floating_point() and batch.targets.shape == batch.inputs.shape:
            assert other != before, what
        elif batch.targets.shape == batch.inputs[:, 0].shape and not torch.equal(there.inputs, batch.inputs):
            assert bool((batch.targets == IGNORE).any()), what


def scans_of_air_stay_finite(task: PretextTask) -> None:
    """Inputs, loss and gradients, where all voxels are alike."""
    trial = Trial(task, fill=-1.0)
    batch, model = trial.prepare(), trial.model()
    assert bool(batch.inputs.isfinite().all())
    loss = torch.stack(list(trial.run(model, batch).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert bool(loss.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def half_precision_is_no_obstacle(task: PretextTask) -> None:
    """The loss of outputs in bfloat16 is finite."""
    trial = Trial(task)
    batch = trial.prepare()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = trial.model()(batch.inputs, *batch.context)
    assert all(bool(term.isfinite()) for term in task.loss(outputs, batch).values())


PRETEXT_CHECKS: tuple[Callable[[PretextTask], None], ...] = (
    preparing_is_pure,
    the_generator_decides_everything,
    inputs_are_patches_for_the_network,
    the_loss_reaches_what_transfers,
    the_score_stands_beside_chance,
    what_padding_and_hidden_voxels_show_is_in_no_loss,
    scans_of_air_stay_finite,
    half_precision_is_no_obstacle,
)
"""Each takes a task and raises AssertionError where that breaks the contract."""
