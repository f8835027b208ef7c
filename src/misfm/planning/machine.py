"""The device that would train, and what is free on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from misfm import world
from misfm.training.loop import best_device


@dataclass(frozen=True)
class Machine:
    """What trains: kind of device, and bytes free on it; on a CPU, where time is short, they play no part.

    Attributes:
        device: its kind.
        free_bytes: of the device of rank 0, for all of which are taken to be alike.
        count: devices among which a batch is shared out; on a CPU, processes.
    """

    device: Literal["cpu", "cuda", "mps"]
    free_bytes: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """As sentences have it."""
        if self.device == "cpu":
            return "CPU"
        free = f"{self.free_bytes / 2**30:.1f} GiB free"
        return f"GPU with {free}" if self.count == 1 else f"set of {self.count} GPUs with {free} on each"


def present_machine() -> Machine:
    """Return the device that training would choose, and what is free on it for tensors."""
    device = best_device()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Machine("cuda", free + unused, world.size())
    if device.type == "mps":
        return Machine("mps", torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return Machine("cpu", count=world.size())
