"""Worlds of several processes on this machine, for tests: ``in_world(function, 2)``."""

import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from misfm import world

ROOT = Path(__file__).parents[1]


def in_world(function, size, *args):
    """Call ``function(*args)``, of a module, in each of ``size`` processes; returns what each returned."""
    if str(ROOT) not in sys.path:  # where the processes find ``tests.test_…``
        sys.path.append(str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (size, folder, function, args), nprocs=size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _one(rank, size, folder, function, args):
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=limit
    )
    with world.member(world.World(rank, size, dist.group.WORLD)):
        torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
