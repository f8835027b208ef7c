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

    shape: PositiveShape = Field(default=(64, 64, 64), description="Voxels along (D, H, W). Default 64 each.")
    spacing: Spacing = Field(
        default=(5.0, 5.0, 5.0), description="Mean mm per voxel along (D, H, W). Default 5 each."
    )
    spacing_jitter: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.15, description="Largest relative change of each spacing. Default 0.15."
    )
    region: Literal["trunk", "head_neck"] = Field(
        default="trunk", description="Part of the body that is shown. Default trunk."
    )
    half_width: tuple[NonNegative, NonNegative] = Field(
        default=(135.0, 165.0),
        description="Half the width of the trunk, or of the head (68 to 84), mm. Default 135 to 165.",
    )
    rotation_degrees: NonNegative = Field(
        default=7.0, description="Largest tilt about each axis, degrees. Default 7."
    )
    deformation: NonNegative = Field(
        default=0.05, description="Bending of the anatomy (deviation), share of half the width. Default 0.05."
    )
    num_bowel_loops: Annotated[int, Field(ge=0)] = Field(
        default=9, description="Loops of bowel in the lower belly of a trunk. Default 9."
    )
    enhancement: tuple[NonNegative, NonNegative] = Field(
        default=(0.0, 1.0), description="Contrast medium, 0 none to 1 arterial. Default 0 to 1."
    )
    noise: tuple[NonNegative, NonNegative] = Field(
        default=(8.0, 28.0), description="Standard deviation of the noise, HU. Default 8 to 28."
    )
    labels: Literal["organs", "structures"] = Field(
        default="organs", description="Label five organs of the trunk, or all structures. Default organs."
    )


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


def _empty_canvas(settings: PhantomSettings, step: NDArray[np.float64], rng: np.random.Generator) -> Canvas:
    """Lay out a scan of air: voxel positions, tilted, shifted and bent."""
    shape = settings.shape
    shift = rng.uniform(-0.06, 0.06, 3)
    if settings.region == "head_neck":
        shift[0] -= rng.uniform(0.2, 1.2)  # how much of head and chest is seen varies from scan to scan
    axes = [((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in zip(shape, step, strict=True)]
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
        edge=float(np.max(step) * rng.uniform(1.0, 1.6)),
        first=triple(first),
        step=(float(step[0]), float(step[1]), float(step[2])),
    )
