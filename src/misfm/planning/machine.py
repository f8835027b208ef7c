"""The device that would train, and what is free on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from misfm.training.loop import best_device


@dataclass(frozen=True)
class Machine:
    """What trains: kind of device, and bytes free on it; on a CPU, where time is short, they play no part."""

    device: Literal["cpu", "cuda", "mps"]
    free_bytes: int = 0

    @property
    def name(self) -> str:
        """As sentences have it."""
        return "CPU" if self.device == "cpu" else f"GPU with {self.free_bytes / 2**30:.1f} GiB free"


def present_machine() -> Machine:
    """Return the device that training would choose, and what is free on it for tensors."""
    device = best_device()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Machine("cuda", free + unused)
    if device.type == "mps":
        return Machine("mps", torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return Machine("cpu")
