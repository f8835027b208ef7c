"""What a training step keeps for its backward pass, in bytes a voxel: the ``Demand`` of each network.

One forward pass of each network with deep supervision and of the loss, on the CPU; every tensor that autograd
saves counts once, parameters left out. Twelve classes against two give what each class adds. With
``training.recompute_activations``, what is kept is what enters the blocks, and for a while what is within one
of them; beside it, the CPU seconds of a step with it for each without, steps taking turns.

    python benchmarks/activation_memory.py [--networks unet,pctnet] [--patch-size 64,64,64] [--no-times]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from misfm.losses import segmentation_loss
from misfm.models import SegmentationModel, create
from misfm.models.base import NETWORKS
from misfm.models.blocks import blocks_of
from misfm.report.markdown import markdown_row, markdown_table
from misfm.training.precision import exact_convolutions
from misfm.training.recompute import recomputed

FEW, MANY = 2, 12
TURNS = 3


def main() -> None:
    """Measure every network, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS.names()))
    parser.add_argument("--patch-size", default="64,64,64")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--no-times", action="store_true")
    arguments = parser.parse_args()
    size = [int(side) for side in arguments.patch_size.split(",")]
    heads = (
        *("network", "bytes a voxel", "and for each class", "recomputed", "and for each class"),
        *("times the CPU seconds", f"patch {arguments.patch_size}, {arguments.precision}"),
    )
    print(*markdown_table(heads, []), sep="\n")
    for name in arguments.networks.split(","):
        cells = [name]
        for count in (saved_bytes, recomputed_bytes):
            few, many = (count(Step(name, classes, size, arguments.precision)) for classes in (FEW, MANY))
            each = (many - few) / (MANY - FEW)
            cells += [f"{few - FEW * each:.0f}", f"{each:.0f}"]
        cost = "" if arguments.no_times else f"{time_cost(Step(name, FEW, size, arguments.precision)):.2f}"
        print(markdown_row((*cells, cost, "")), flush=True)


class Step:
    """A network with a batch of one patch; called, it returns the loss."""

    def __init__(self, name: str, num_classes: int, patch_size: list[int], precision: str, **options: Any):
        self.model: SegmentationModel = create(
            name, num_classes=num_classes, patch_size=patch_size, deep_supervision=True, **options
        ).train()
        self.x = torch.randn(1, 1, *patch_size)
        self.target = torch.randint(num_classes, (1, *patch_size))
        self.is_mixed = precision == "bfloat16"

    def __call__(self) -> Tensor:
        """Forward pass and loss."""
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed)
        with mixed, exact_convolutions(self.x.device):
            outputs = self.model(self.x)
        terms = segmentation_loss(outputs, self.target, balance=0.5)
        assert all(term.requires_grad for term in terms.values())
        return torch.stack(list(terms.values())).sum()


class Kept:
    """Counts bytes that autograd saves, each storage once, apart from parameters and what is in a block."""

    def __init__(self, model: nn.Module) -> None:
        self.known: dict[int, Tensor] = {}  # kept, so that no address comes twice
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.block: nn.Module | None = None
        self.sizes: dict[nn.Module | None, int] = {None: 0}

    def note(self, tensor: Tensor) -> Tensor:
        """Take in a tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in {*self.parameters, *self.known}:
            self.known[storage.data_ptr()] = tensor
            self.sizes[self.block] = self.sizes.get(self.block, 0) + storage.nbytes()
        return tensor

    def during(self, step: Step) -> None:
        """Watch a step."""
        with torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor):
            step()

    def enter(self, block: nn.Module | None) -> Callable[..., None]:
        """Return a hook that says which block is computed from now on."""
        return lambda *_: setattr(self, "block", block)


def saved_bytes(step: Step) -> float:
    """Bytes that a step of one sample saves for each voxel of its patch."""
    kept = Kept(step.model)
    kept.during(step)
    return sum(kept.sizes.values()) / step.x.numel()


def recomputed_bytes(step: Step) -> float:
    """Likewise where blocks are computed twice: what enters them, and what is in the one that keeps most."""
    outside, within = Kept(step.model), Kept(step.model)
    with recomputed(step.model):
        outside.during(step)
    with ExitStack() as stack:
        for block in blocks_of(step.model):
            stack.callback(block.register_forward_pre_hook(within.enter(block)).remove)
            stack.callback(block.register_forward_hook(within.enter(None)).remove)
        within.during(step)
    most = max(size for block, size in within.sizes.items() if block is not None)
    return (sum(outside.sizes.values()) + most) / step.x.numel()


def time_cost(step: Step) -> float:
    """CPU seconds of a step with recomputation for each second of one without."""

    def seconds() -> float:
        began = time.process_time()
        step().backward()  # type: ignore[no-untyped-call]
        return time.process_time() - began

    ratios = []
    for _ in range(TURNS + 1):
        plain = seconds()
        with recomputed(step.model):
            ratios.append(seconds() / plain)
    return median(ratios[1:])  # the first makes room for what follows


if __name__ == "__main__":
    main()
