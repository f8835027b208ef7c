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
        model: whose present weights the average begins with.
        decay: share of the average that stays in a step, 0 < decay < 1; in the first steps it is
            (1 + step) / (10 + step) where that is less, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.values = {name: tensor.clone() for name, tensor in self._weights().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = self._weights()
        averaged = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [self.values[name] for name in averaged], [weights[name] for name in averaged], 1 - decay
        )
        for name in weights.keys() - set(averaged):
            self.values[name].copy_(weights[name])

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Go on from the average in a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the weights of the network; once more undoes it, bit for bit."""
        for name, tensor in self._weights().items():
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

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, each once; looked up anew, as buffers may be replaced."""
        named = chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: tensor.detach() for name, tensor in named}
