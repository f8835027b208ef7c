"""Exponential moving average of a network's weights: what validates and is kept, while the weights train on.

The last steps of a short training jump about a good place; their average lies closer to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of all parameters and buffers of a network; whole numbers, such as counters, are copied.

    Args:
        model: whose present weights the average starts from.
        decay: share of the average that stays in a step, 0 < decay < 1; in the first steps it is
            (1 + step) / (10 + step) where that is less, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.values = {name: tensor.clone() for name, tensor in weights_of(self.model).items()}

    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (0-based)."""
        move_average(self.values, weights_of(self.model), decay_at(step, self.decay))

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the average in a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the weights of the network; once more undoes it, bit for bit."""
        for name, tensor in weights_of(self.model).items():
            kept = tensor.clone()
            tensor.copy_(self.values[name])
            self.values[name].copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once; looked up anew each time, as buffers may be replaced."""
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def decay_at(step: int, decay: float) -> float:
    """Share of an average that stays in ``step`` (0-based): less in the first, so the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(values: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Take weights into an average, in place; whole numbers, such as counters, are copied."""
    averaged = [name for name, tensor in weights.items() if tensor.is_floating_point()]
    ours, theirs = ([own_part(of[name]) for name in averaged] for of in (values, weights))
    torch._foreach_lerp_(ours, theirs, 1 - decay)
    for name in weights.keys() - set(averaged):
        values[name].copy_(weights[name])


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor that devices share, and all of any other; the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
