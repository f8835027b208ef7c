"""How this process was started: alone, or as one of many by ``torchrun``, ``srun`` or misfm itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Started:
    """One of several processes that were started together.

    Attributes:
        rank: of this process among all, from 0.
        size: how many there are on all machines.
        local_size: how many there are on this machine.
        num_nodes: machines.
        by: what started them.
    """

    rank: int
    size: int
    local_size: int
    num_nodes: int
    by: Literal["misfm", "torchrun", "srun"]


def started_world(environment: Mapping[str, str] = os.environ) -> Started | None:
    """Return what this process was started as one of; None where it was started alone.

    A shell or batch script in a SLURM allocation of several tasks is one process all the same: ``srun`` gives
    each task its number.
    """

    def number(name: str, default: int = 1) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdecimal() else default

    if "TORCHELASTIC_RUN_ID" in environment and (size := number("WORLD_SIZE")) > 1:
        local = number("LOCAL_WORLD_SIZE", size)
        return Started(number("RANK", 0), size, local, max(1, size // local), "torchrun")
    if "LOCAL_RANK" in environment and (size := number("WORLD_SIZE")) > 1:
        nodes = number("MISFM_NODES")
        rank = number("NODE_RANK", 0) * (size // nodes) + number("LOCAL_RANK", 0)
        return Started(rank, size, size // nodes, nodes, "misfm")
    if "SLURM_STEP_ID" in environment and (size := number("SLURM_STEP_NUM_TASKS")) > 1:
        nodes = number("SLURM_STEP_NUM_NODES")
        return Started(number("SLURM_PROCID", 0), size, max(1, size // nodes), nodes, "srun")
    return None


def unused_tasks(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many tasks SLURM has given to a job of which this one process makes no use; 1 if it does."""
    tasks = environment.get("SLURM_NTASKS", "")
    alone = started_world(environment) is None
    return int(tasks) if alone and tasks.isdecimal() else 1
