"""What every pretext task must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from misfm.losses import IGNORE
from misfm.pretext import PretextTask
from misfm.testing.shares import (
    losses_and_scores_are_those_of_the_whole_batch,
    samples_meet_only_where_it_is_said,
)
from misfm.testing.trial import CHANNELS, VOLUMES, Trial


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
    samples_meet_only_where_it_is_said,
    losses_and_scores_are_those_of_the_whole_batch,
)
"""Each takes a task and raises AssertionError where that breaks the contract."""
