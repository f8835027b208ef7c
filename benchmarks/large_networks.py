"""What large networks take of a GPU's memory in training, with and without computing blocks twice.

Weights, gradients and AdamW's two moments in float32 on each device (``ddp``) or shared out (``fsdp``), and
beside them what a step keeps for each sample of a device (``Demand``, measured in float32 by
``activation_memory.py``; mixed precision keeps about half). The last columns are the samples of a device that
fit beside all of the network, within the share of the memory that plans use.

    python benchmarks/large_networks.py [--networks primus-l,resenc-l] [--patch-size 160,160,160] [--gib 80]
"""

from __future__ import annotations

import argparse
from math import prod

import torch

from misfm.models import create
from misfm.models.base import NETWORKS
from misfm.planning.plan import MEMORY_SHARE, SAVED_FOR_CLASS
from misfm.report.markdown import markdown_row, markdown_table

GIB = 2**30
BYTES_A_PARAMETER = 16
"""Of weight, gradient and two moments."""
MIXED = 0.5
"""Of what is kept in float32, that mixed precision keeps."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="primus-m,primus-l,resenc-l,pctnet")
    parser.add_argument("--patch-size", default="160,160,160")
    parser.add_argument("--gib", type=float, default=80)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--classes", type=int, default=5)
    arguments = parser.parse_args()
    size = [int(side) for side in arguments.patch_size.split(",")]
    heads = (
        *("network", "parameters", "state, GiB", f"with fsdp on {arguments.devices}"),
        *("GiB a sample, float32", "recomputed", "mixed precision", "recomputed"),
        *(f"samples in {arguments.gib:g} GiB", "recomputed", "mixed precision", "recomputed"),
    )
    print(*markdown_table(heads, []), sep="\n")
    for name in arguments.networks.split(","):
        with torch.device("meta"):
            model = create(name, num_classes=arguments.classes, patch_size=size)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        state = BYTES_A_PARAMETER * parameters / GIB
        demand = NETWORKS.demand(name)
        samples = [
            share
            * prod(size)
            * (demand.kept(recompute=recompute) + SAVED_FOR_CLASS * arguments.classes)
            / GIB
            for share in (1, MIXED)
            for recompute in (False, True)
        ]
        fitting = [int((MEMORY_SHARE * arguments.gib - state) / each) for each in samples]
        amounts = [f"{amount:.1f}" for amount in (state, state / arguments.devices, *samples)]
        print(markdown_row((name, f"{parameters / 1e6:.0f} M", *amounts, *map(str, fitting))), flush=True)


if __name__ == "__main__":
    main()
