"""Memory for time: what is within the blocks of a network is computed again when the backward pass needs it.

Only what enters a block is kept (activation checkpointing, arXiv 1604.06174). Each block is computed the
second time as it was the first: with the same random numbers, in the same precision, and without a second
share in running statistics. So a training takes the very steps that it takes otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from misfm.models.blocks import blocks_of
from misfm.training.precision import exact_convolutions


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Let the blocks of a model be computed again in each backward pass while the context lasts.

    Names of parameters stay. Passes without gradients and those in eval mode are as they were.
    """
    blocks = blocks_of(model)
    for block in blocks:
        block.forward = partial(_computed_twice, block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # what is left is the method of its class


def _computed_twice(block: nn.Module, *inputs: Any) -> Any:
    """Call a block, keeping its inputs only."""
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    device = next((x.device for x in inputs if isinstance(x, Tensor)), torch.device("cpu"))
    contexts = partial(_contexts, block, device)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(
    block: nn.Module, device: torch.device
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What a block is computed in the first time and the second, beside what torch takes over itself."""
    hooks = {module: module._forward_hooks.copy() for module in block.modules() if module._forward_hooks}
    return nullcontext(), _second_time(block, device, hooks)


@contextmanager
def _second_time(block: nn.Module, device: torch.device, hooks: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Let a block be as it was: convolutions, hooks on its layers that may be gone, running statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm._buffers.update, dict(norm._buffers))
            norm._buffers.update({name: _copied(buffer) for name, buffer in norm._buffers.items()})
        for module, before in hooks.items():
            stack.callback(setattr, module, "_forward_hooks", module._forward_hooks)
            module._forward_hooks = before
        stack.enter_context(exact_convolutions(device))
        yield


def _copied(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()
