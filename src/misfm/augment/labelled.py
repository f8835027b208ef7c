"""Augmentation that keeps labels true: one random half that draws a plan, one pure half that applies it.

Kinds and probabilities follow nnU-Net (Isensee et al. 2021, supplementary note 4). Rotation, scaling and
elastic deformation act in millimetres, in one resampling; intensities follow in
:mod:`misfm.augment.intensity`, and mixing of samples, which comes before, is in
:mod:`misfm.augment.carvemix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from misfm.augment.elastic import UNFOLDED, displacement_field, num_control_points
from misfm.augment.intensity import (
    IntensityPlan,
    IntensitySettings,
    apply_intensities,
    draw_sometimes,
    sample_intensities,
    sample_resolution,
)
from misfm.augment.mirrors import AxisName
from misfm.batches import sent
from misfm.settings import Probability, Range
from misfm.volume import FloatTriple, Shape

Strength = Annotated[float, Field(gt=0, le=UNFOLDED)]

ANISOTROPIC = 3.0
"""Ratio of the largest to the smallest spacing above which slices are rotated in their own plane only."""


class AugmentSettings(IntensitySettings):
    """How strongly and how often patches are varied while fine-tuning; ranges are uniform and inclusive."""

    p_spatial: Probability = 0.7
    """Share of patches rotated and scaled."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation about each of (D, H, W), degrees."""
    scale: Range = (0.85, 1.2)
    """Magnification, ratio."""
    p_elastic: Probability = 0.0
    """Share of patches deformed elastically."""
    elastic: tuple[Strength, Strength] = (0.1, UNFOLDED)
    """Largest displacement of a control point along an axis over the distance between control points; at most
    0.4, so that nothing folds."""
    elastic_distance: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Distance between control points over the longest side of the patch, in mm both."""
    p_carvemix: Probability = 0.0
    """Share of samples that receive an organ of another (CarveMix)."""
    flip_axes: tuple[AxisName, ...] = ()
    """Axes mirrored with probability 0.5 each. W is the midline axis, where labels of paired organs change
    sides; see safe_flip_axes."""


@dataclass(frozen=True)
class AugmentationPlan(IntensityPlan):
    """What happens to each of B patches, their intensities included; neutral values leave a patch as it is.

    Attributes:
        size: voxels of the result along (D, H, W).
        spacing: mm per voxel along (D, H, W), or any multiple of it.
        matrix: (B, 3, 3) float32, millimetres from the centre of the result to millimetres in the source.
        displacements: (B, d, h, w, 3) float32 mm, of the control points of an elastic deformation, which
            comes before ``matrix``; 0 for none.
        distance: mm between control points.
        flips: (B, 3) bool, mirror along (D, H, W).
    """

    size: Shape
    spacing: FloatTriple
    matrix: Tensor
    displacements: Tensor
    distance: float
    flips: Tensor


def sample_augmentation(
    shape: Sequence[int],
    settings: AugmentSettings,
    generator: torch.Generator,
    *,
    spacing: FloatTriple = (1.0, 1.0, 1.0),
) -> AugmentationPlan:
    """Draw a plan for a batch.

    Args:
        shape: (B, C, D, H, W) of the result; C plays no part.
        settings: strengths and probabilities.
        generator: a CPU generator; the same state gives the same plan on any device.
        spacing: mm per voxel along (D, H, W) of the patches; only ratios matter.
    """
    batch, (d, h, w) = shape[0], shape[-3:]

    def uniform(limits: tuple[float, float], *more: int) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * torch.rand(batch, *more, generator=generator)

    def chance(probability: float) -> Tensor:
        return torch.rand(batch, generator=generator) < probability

    ratio = torch.tensor(spacing) / min(spacing)
    coarse = (ratio > ANISOTROPIC) & (ratio == ratio.max())
    spatial = chance(settings.p_spatial)
    limit = math.radians(settings.rotation_degrees)
    angles = uniform((-limit, limit), 3) * spatial[:, None]
    if coarse.any():
        angles = angles * coarse
    scale = torch.where(spatial, uniform(settings.scale), 1.0)
    resolution = sample_resolution(batch, settings, generator)
    flips = torch.rand(batch, 3, generator=generator) < 0.5
    resolution = torch.where(coarse, 1.0, resolution)
    intensities = sample_intensities(batch, settings, generator, resolution=resolution)
    longest = max(side * mm for side, mm in zip((d, h, w), spacing, strict=True))
    distance = settings.elastic_distance * longest
    points = num_control_points((d, h, w), spacing, distance)
    strength = draw_sometimes(batch, settings.p_elastic, settings.elastic, 0.0, generator)
    moves = uniform((-distance, distance), *points, 3) * strength.view(-1, 1, 1, 1, 1) * ~coarse
    return AugmentationPlan(
        size=(d, h, w),
        spacing=spacing,
        matrix=rotation(angles) / scale[:, None, None],
        displacements=moves,
        distance=distance,
        flips=flips & torch.tensor([axis in settings.flip_axes for axis in ("D", "H", "W")]),
        **vars(intensities),
    )


def apply_augmentation(image: Tensor, label: Tensor, plan: AugmentationPlan) -> tuple[Tensor, Tensor]:
    """Apply a plan; pure, deterministic, on the device of its input.

    Args:
        image: (B, C, D, H, W) float; may exceed ``plan.size``, so that rotation finds voxels at the corners.
        label: (B, D, H, W) integer, on the same grid.
        plan: what to do.

    Returns:
        Image (B, C, *plan.size) and label (B, *plan.size) of the given types. Places outside the source hold
        the patch's lowest value of each channel, and label 0.
    """
    image, label = _transform(image, label, plan)
    return apply_intensities(image, plan), label


def rotation(angles: Tensor) -> Tensor:
    """Return rotations (B, 3, 3) about D, then H, then W by ``angles`` (B, 3) in radians."""
    matrix = torch.eye(3).expand(len(angles), 3, 3)
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, first, first], turn[:, second, second] = cos, cos
        turn[:, first, second], turn[:, second, first] = -sin, sin
        matrix = turn @ matrix
    return matrix


def _transform(image: Tensor, label: Tensor, plan: AugmentationPlan) -> tuple[Tensor, Tensor]:
    """Rotate, scale, deform and mirror into fresh tensors of ``plan.size``."""
    device, source = image.device, image.shape[2:]
    deformed = plan.displacements.flatten(1).any(1)
    moved = ((plan.matrix != torch.eye(3)).flatten(1).any(1) | deformed).nonzero()[:, 0]
    centre = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(source, plan.size, strict=True))
    new_image, new_label = image[:, :, *centre].clone(), label[:, *centre].clone()
    if len(moved):
        # grid_sample measures in half sides of the array, along (W, H, D).
        half = torch.tensor(plan.spacing) / 2
        to_mm, from_mm = torch.tensor(plan.size) * half, 1 / (torch.tensor(source) * half)
        theta = (from_mm[:, None] * plan.matrix[moved] * to_mm).flip(1, 2)
        theta = sent(F.pad(theta, (0, 1)), image)
        grid = F.affine_grid(theta, [len(moved), 1, *plan.size], align_corners=False)
        if deformed.any():
            # Splines are linear in their control points, so these are rotated and scaled, not each voxel.
            points = plan.displacements[moved] @ plan.matrix[moved, None, None].mT
            points = sent((points * from_mm).flip(4), image)
            grid = grid + displacement_field(points, plan.size, plan.spacing, plan.distance)
        moved = sent(moved, device)
        old = image[moved]
        lowest = old.amin((2, 3, 4), keepdim=True)
        new_image[moved] = F.grid_sample(old - lowest, grid, align_corners=False) + lowest
        # Nearest: one pass for any number of labels, and borders move half a voxel at most.
        old_label = label[moved, None].to(image.dtype)
        new_label[moved] = F.grid_sample(old_label, grid, "nearest", align_corners=False)[:, 0].to(
            label.dtype
        )
    for axis in range(3):
        index = sent(plan.flips[:, axis].nonzero()[:, 0], device)
        if len(index):
            new_image[index] = new_image[index].flip(axis + 2)
            new_label[index] = new_label[index].flip(axis + 1)
    return new_image, new_label
