"""Generated CT scans: something to try, test and pretrain on without any download."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from misfm.settings import PositiveShape, Settings, Spacing
from misfm.synthesis import head_neck, trunk
from misfm.synthesis.canvas import Canvas, smooth_field
from misfm.synthesis.structures import NUM_ORGANS
from misfm.volume import Volume, triple

NonNegative = Annotated[float, Field(ge=0)]


class PhantomSettings(Settings):
    """What generated scans look like. Ranges are uniform and inclusive."""

    shape: PositiveShape = (64, 64, 64)
    """Voxels along (D, H, W)."""
    spacing: Spacing = (5.0, 5.0, 5.0)
    """Mean mm per voxel along (D, H, W)."""
    spacing_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of each spacing."""
    region: Literal["trunk", "head_neck"] = "trunk"
    """Part of the body that is shown."""
    half_width: tuple[NonNegative, NonNegative] = (135.0, 165.0)
    """Half the width of the trunk, or of the head (68 to 84), mm."""
    rotation_degrees: NonNegative = 7.0
    """Largest tilt about each axis, degrees."""
    deformation: NonNegative = 0.05
    """Standard deviation of the deformation of the anatomy, as a share of half the width."""
    num_bowel_loops: Annotated[int, Field(ge=0)] = 9
    """Loops of bowel in the lower belly of a trunk."""
    enhancement: tuple[NonNegative, NonNegative] = (0.0, 1.0)
    """Contrast medium, 0 none to 1 arterial."""
    noise: tuple[NonNegative, NonNegative] = (8.0, 28.0)
    """Standard deviation of the noise, HU."""
    labels: Literal["organs", "structures"] = "organs"
    """organs: five organs of the trunk; structures: everything that is drawn."""


_VARIED = PhantomSettings(spacing_jitter=0.3, rotation_degrees=15.0, deformation=0.07, labels="structures")
TO_PRETRAIN_ON = (
    _VARIED.model_copy(update={"spacing": (4.5, 4.5, 4.5)}),
    _VARIED.model_copy(
        update={
            "region": "head_neck",
            "half_width": (68.0, 84.0),
            "shape": (80, 64, 64),
            "spacing": (3.0, 4.0, 4.0),
        }
    ),
)
"""More to tell apart, and more varied than people are: what is learnt has to fit other parts of the body."""


def generate_phantom(
    settings: PhantomSettings, generator: np.random.Generator | int
) -> tuple[Volume, Volume]:
    """Generate a case.

    Args:
        settings: size and looks.
        generator: source of randomness, or a seed.

    Returns:
        Image (1, D, H, W) int16 in HU and label map (1, D, H, W) uint8, where organs have the values of
        ``ORGAN_NAMES`` and other structures those of :mod:`misfm.synthesis.structures`; both in
        orientation SPL with the affine of the drawn spacing.
    """
    rng = generator if isinstance(generator, np.random.Generator) else np.random.default_rng(generator)
    jitter = settings.spacing_jitter
    spacing = np.array(settings.spacing) * rng.uniform(1 - jitter, 1 + jitter, 3)
    canvas = _empty_canvas(settings, spacing / rng.uniform(*settings.half_width), rng)
    medium = rng.uniform(*settings.enhancement)
    if settings.region == "head_neck":
        head_neck.draw(canvas, rng, medium)
    else:
        trunk.draw(canvas, rng, medium, settings.num_bowel_loops)
    # Reconstruction correlates noise within a slice: each voxel shares with its neighbours.
    noise = rng.standard_normal(settings.shape, np.float32)
    noise += np.roll(noise, 1, 1) + np.roll(noise, 1, 2)
    image = canvas.image + noise * np.float32(rng.uniform(*settings.noise) / math.sqrt(3))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (spacing[0], -spacing[1], -spacing[2], 1)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(settings.shape) - 1) / 2 + rng.uniform(-50, 50, 3)
    voxels = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    if settings.labels == "organs":
        canvas.label[canvas.label > NUM_ORGANS] = 0
    return Volume(voxels[None], affine), Volume(canvas.label[None], affine)


def _empty_canvas(
    settings: PhantomSettings, spacing: NDArray[np.float64], rng: np.random.Generator
) -> Canvas:
    """Lay out a scan of air: coordinates of its voxels, tilted, shifted and deformed.

    ``spacing`` is in units of half the width, as all coordinates are.
    """
    shape = settings.shape
    shift = rng.uniform(-0.06, 0.06, 3)
    if settings.region == "head_neck":
        shift[0] -= rng.uniform(0.2, 1.2)  # how much of head and chest is seen varies from scan to scan
    axes = [
        ((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in zip(shape, spacing, strict=True)
    ]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    a, b, c = np.radians(settings.rotation_degrees) * rng.uniform(-1, 1, 3)
    tilt, triangle = np.linalg.qr([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    tilt = (tilt * np.sign(np.diag(triangle))).astype(np.float32)
    up, back, left = (
        tilt[i, 0] * grid[0]
        + tilt[i, 1] * grid[1]
        + tilt[i, 2] * grid[2]
        + np.float32(shift[i])
        + np.float32(settings.deformation) * smooth_field(shape, 3, rng)
        + np.float32(settings.deformation / 5) * smooth_field(shape, 8, rng)
        for i in range(3)
    )
    first = [float(axis[0] + offset) for axis, offset in zip(axes, shift, strict=True)]
    return Canvas(
        image=np.full(shape, -1000, np.float32),
        label=np.zeros(shape, np.uint8),
        up=up,
        back=back,
        left=left,
        texture=smooth_field(shape, 16, rng),
        wobble=smooth_field(shape, 9, rng),
        wall=np.zeros(shape, np.float32),
        edge=float(np.max(spacing) * rng.uniform(1.0, 1.6)),
        first=triple(first),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
    )
