"""Divide the kernels of a lean U-Net without changing what it computes: is their size what slows fine-tuning?

Every stream of features ends in an instance norm, so what writes into a stream may be divided by a constant,
biases included, and so may a convolution between two norms. Prints how far the output of a patch moves.

    python benchmarks/rescale_weights.py runs/pretrain rescaled.safetensors --divisor 3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch

import misfm
from misfm import weights
from misfm.models.base import SegmentationModel
from misfm.models.unet import UNet


def main() -> None:
    """Read, divide, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--divisor", type=float, default=3.0)
    arguments = parser.parse_args()
    info = weights.source.open_source(arguments.source).info
    assert info is not None
    model = cast(SegmentationModel, misfm.from_pretrained(arguments.source)).eval()
    patch = torch.randn(1, info.in_channels, *(info.patch_size or (40, 40, 40)))
    with torch.inference_mode():
        before = model(patch)
    rescale(cast(UNet, model.backbone), arguments.divisor)
    with torch.inference_mode():
        after = model(patch)
    moved = float((after - before).abs().max() / before.abs().max())
    weights.save(arguments.out, model, info)
    print(f"The output of a random patch moved by {moved:.1e} of its largest value.")


@torch.no_grad()
def rescale(unet: UNet, divisor: float) -> None:
    """Divide all 3x3x3 kernels and their biases, and the biases of what joins streams."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv3d):
            if module.kernel_size != (1, 1, 1):
                module.weight.div_(divisor)
            if module.bias is not None:
                module.bias.div_(divisor)


if __name__ == "__main__":
    main()
