"""What lets several processes train a pretext task together, each with a share of the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from misfm import world
from misfm.batches import Batch, Share
from misfm.pretext import PretextTask
from misfm.seeding import generator_for
from misfm.testing.trial import VOLUMES, Trial

TOLERANCE = 1e-4


class _Paused(Exception):
    """A process waits for what the others have."""


@dataclass(frozen=True)
class _Rehearsal(world.World):
    """One of several processes, of which one after the other runs up to where it waits for the others.

    Attributes:
        exchanged: what all of them had in each exchange so far.
        own: what this one has had.
    """

    exchanged: list[list[Tensor]] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of what all had."""
        return torch.stack(self._exchanged(x)).sum(0)

    def gathered(self, x: Tensor) -> Tensor:
        """Return the rows that all had."""
        return torch.cat(self._exchanged(x))

    def _exchanged(self, x: Tensor) -> list[Tensor]:
        number = len(self.own)
        self.own.append(x)
        if number == len(self.exchanged):
            raise _Paused
        return self.exchanged[number]


def rehearsed(function: Callable[[int], Mapping[str, float]], size: int) -> list[Mapping[str, float]]:
    """Call ``function(rank)`` as each of several processes would that exchange tensors, in one process.

    Raises:
        AssertionError: they do not exchange equally often.
    """
    exchanges: list[list[Tensor]] = []
    while True:
        found, waiting = [], []
        for rank in range(size):
            one = _Rehearsal(rank, size, None, exchanges)
            try:
                with world.member(one):
                    found.append(function(rank))
            except _Paused:
                waiting.append(one.own[-1])
        assert not (found and waiting), "processes wait for each other: exchange in each batch alike"
        if found:
            return found
        exchanges.append(waiting)


def samples_meet_only_where_it_is_said(task: PretextTask) -> None:
    """Unless samples of a batch meet, what is made of each does not depend on the others."""
    if task.samples_meet != "nowhere":
        return
    trial = Trial(task)
    before = trial.prepare()
    for changed in range(VOLUMES):
        patches = trial.patches.clone()
        patches[changed] += 1
        after = trial.prepare(patches)
        for one, other in zip(_columns(before), _columns(after), strict=True):
            rows = len(one) // VOLUMES
            if len(one) % VOLUMES or len(other) != len(one):
                continue
            for sample in set(range(VOLUMES)) - {changed}:
                own = slice(sample * rows, (sample + 1) * rows)
                assert torch.equal(one[own], other[own]), (
                    f"sample {changed} changes what is made of sample {sample}: let samples_meet say so"
                )


def losses_and_scores_are_those_of_the_whole_batch(task: PretextTask) -> None:
    """However the samples are shared out, networks answer the same, and all processes have the same loss."""
    if task.samples_meet == "in loss":
        return
    trial = Trial(task)
    valid = trial.placement.valid.clone()
    valid[0, :, 1, 2] -= 2
    trial.placement = replace(trial.placement, valid=valid)
    parts = _shares(trial)
    batch, model = type(parts[0]).joined(parts), trial.model().eval()
    with torch.no_grad():
        whole = model(batch.inputs, *batch.context)
        outputs = [model(part.inputs, *part.context) for part in parts]
    rows = [_tensors(output) for output in outputs]
    for number, tensor in enumerate(_tensors(whole)):
        joined = torch.cat([each[number] for each in rows])
        assert torch.allclose(joined, tensor, atol=TOLERANCE), "the network sees other samples together"

    def numbers(outputs: Any, batch: Batch) -> Mapping[str, float]:
        terms = {name: float(term) for name, term in task.loss(outputs, batch).items()}
        return {**terms, **task.score(outputs, batch)}

    expected = numbers(whole, batch)
    for found in rehearsed(lambda rank: numbers(outputs[rank], parts[rank]), VOLUMES):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            own, all_of_it = torch.tensor([found[name], value]).unbind()
            assert torch.allclose(own, all_of_it, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True), (
                f"{name} is {own} for a share and {all_of_it} for all: see misfm.losses.batch_mean"
            )


def _shares(trial: Trial) -> list[Batch]:
    """One sample a process."""
    if trial.task.samples_meet == "in inputs":
        whole = trial.prepare()
        return [whole.rows(Share(rank, VOLUMES)) for rank in range(VOLUMES)]
    return [
        trial.task.prepare(
            trial.patches[rank : rank + 1],
            trial.placement.rows(slice(rank, rank + 1)),
            trial.patch_size,
            generator_for("draws", rank),
        )
        for rank in range(VOLUMES)
    ]


def _columns(batch: Batch) -> list[Tensor]:
    return [tensor for each in fields(batch) for tensor in _tensors(getattr(batch, each.name))]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, list | tuple) else []
