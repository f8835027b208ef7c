"""What a training step keeps for its backward pass, in bytes a voxel: the ``Demand`` of each network.

One forward pass of each network with deep supervision and of the loss, float32, on the CPU; every tensor that
autograd saves counts once, parameters left out. Twelve classes against two give what each class adds.

    python benchmarks/activation_memory.py [--networks unet,pctnet] [--patch-size 64,64,64]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from misfm.losses import segmentation_loss
from misfm.models import create
from misfm.models.base import NETWORKS
from misfm.report.markdown import markdown_row, markdown_table

FEW, MANY = 2, 12


def main() -> None:
    """Measure every network, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS.names()))
    parser.add_argument("--patch-size", default="64,64,64")
    arguments = parser.parse_args()
    size = [int(side) for side in arguments.patch_size.split(",")]
    heads = ("network", "bytes a voxel", "and for each class", f"patch {arguments.patch_size}")
    print(*markdown_table(heads, []), sep="\n")
    for name in arguments.networks.split(","):
        few, many = (saved_bytes(name, classes, size) for classes in (FEW, MANY))
        each = (many - few) / (MANY - FEW)
        print(markdown_row((name, f"{few - FEW * each:.0f}", f"{each:.0f}", "")), flush=True)


def saved_bytes(name: str, num_classes: int, patch_size: list[int], **options: Any) -> float:
    """Bytes that a step of one sample saves for each voxel of its patch."""
    model = create(name, num_classes=num_classes, patch_size=patch_size, deep_supervision=True, **options)
    mine = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, tuple[Tensor, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            saved[storage.data_ptr()] = tensor, storage.nbytes()  # kept, so that no address comes twice
        return tensor

    x = torch.randn(1, 1, *patch_size)
    target = torch.randint(num_classes, (1, *patch_size))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = segmentation_loss(model.train()(x), target, balance=0.5)
    assert all(term.requires_grad for term in terms.values())
    return sum(size for _, size in saved.values()) / x.numel()


if __name__ == "__main__":
    main()
