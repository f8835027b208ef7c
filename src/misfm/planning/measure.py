"""What a plan follows from, measured: the grids of a dataset's scans, and the device that would train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from misfm.data.dataset import Case
from misfm.data.intensity import Kind
from misfm.data.preprocess import canonical, content_box
from misfm.data.readers import read_volume
from misfm.planning.plan import Machine
from misfm.settings import Spacing
from misfm.training.loop import best_device
from misfm.volume import Shape

MAX_MEASURED = 32
"""Cases whose scans are looked at."""


@dataclass(frozen=True)
class Scans:
    """Grids of some images of a dataset, in canonical orientation and without the air around the patient.

    Attributes:
        spacings: mm along (D, H, W).
        shapes: voxels along (D, H, W).
    """

    spacings: NDArray[np.float64]
    shapes: NDArray[np.float64]

    @classmethod
    def measure(cls, cases: Sequence[Case], kind: Kind) -> Scans:
        """Look at up to 32 evenly chosen cases.

        Raises:
            DataError: an image that cannot be read.
        """
        chosen = cases[:: -(-len(cases) // MAX_MEASURED)]
        volumes = (canonical(read_volume(case.image_paths[0])) for case in chosen)
        grids = [(volume.spacing, content_box(volume, kind).size) for volume in volumes]
        return cls(np.array([spacing for spacing, _ in grids]), np.array([size for _, size in grids], float))

    @property
    def spacing(self) -> Spacing:
        """The median, mm."""
        d, h, w = (round(float(value), 4) for value in np.median(self.spacings, axis=0))
        return d, h, w

    def shape(self, spacing: Spacing | Literal["native"]) -> Shape:
        """The median in voxels of ``spacing``."""
        shapes = self.shapes if spacing == "native" else self.shapes * self.spacings / spacing
        d, h, w = (max(1, round(float(side))) for side in np.median(shapes, axis=0))
        return d, h, w


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
