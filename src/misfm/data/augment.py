"""Augmentation that keeps labels true: one random half that draws a plan, one pure half that applies it.

Kinds and probabilities follow nnU-Net (Isensee et al. 2021, supplementary note 4). Rotation and scaling act
in millimetres, in one resampling; blur and low resolution are linear along each axis, so both together are
one small matrix for each axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from misfm.settings import Settings
from misfm.volume import FloatTriple, Triple

AxisName = Literal["D", "H", "W"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[Positive, Positive]

ANISOTROPIC = 3.0
"""Ratio of the largest to the smallest spacing above which slices are rotated in their own plane only."""

_LATERAL = re.compile(
    r"(?i:left|right)|(?<![A-Za-z])(?i:lt|rt|l|r)(?![A-Za-z])|[a-z][LR]$|^[LR](?=[A-Z][a-z])"
)


class AugmentSettings(Settings):
    """How strongly and how often patches are varied while fine-tuning; ranges are uniform and inclusive."""

    p_spatial: Probability = Field(
        default=0.7, description="Share of patches rotated and scaled. Default 0.7."
    )
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        default=15.0, description="Largest rotation about each of (D, H, W), degrees. Default 15."
    )
    scale: Range = Field(default=(0.85, 1.2), description="Magnification, ratio. Default 0.85 to 1.2.")
    flip_axes: tuple[AxisName, ...] = Field(
        default=(),
        description="Axes mirrored with probability 0.5 each. Default none: W is the midline axis, where "
        "labels of paired organs change sides; see safe_flip_axes.",
    )
    p_noise: Probability = Field(
        default=0.1, description="Share of patches with Gaussian noise. Default 0.1."
    )
    noise: Range = Field(
        default=(0.02, 0.3), description="Noise over the patch's standard deviation. Default 0.02-0.3."
    )
    p_blur: Probability = Field(default=0.2, description="Share of patches blurred. Default 0.2.")
    blur: Range = Field(default=(0.5, 1.0), description="Gaussian sigma, voxels. Default 0.5 to 1.")
    p_low_resolution: Probability = Field(
        default=0.25, description="Share sampled down and up again. Default 0.25."
    )
    low_resolution: Range = Field(
        default=(0.5, 1.0), description="Share of voxels kept along an axis. Default 0.5 to 1."
    )
    p_brightness: Probability = Field(
        default=0.15, description="Share of patches multiplied by a factor. Default 0.15."
    )
    brightness: Range = Field(
        default=(0.75, 1.25), description="Factor of all intensities. Default 0.75 to 1.25."
    )
    p_contrast: Probability = Field(
        default=0.15, description="Share of patches with other contrast. Default 0.15."
    )
    contrast: Range = Field(
        default=(0.75, 1.25), description="Factor of the distance to the mean. Default 0.75 to 1.25."
    )
    p_gamma: Probability = Field(default=0.3, description="Share of patches with a gamma curve. Default 0.3.")
    gamma: Range = Field(
        default=(0.7, 1.5), description="Exponent on intensities scaled to 0..1. Default 0.7 to 1.5."
    )
    p_gamma_inverted: Probability = Field(
        default=0.25, description="Share of gamma curves that act on the negative image. Default 0.25."
    )


@dataclass(frozen=True)
class AugmentationPlan:
    """What happens to each of B patches; neutral values leave a patch as it is.

    Attributes:
        size: voxels of the result along (D, H, W).
        spacing: mm per voxel along (D, H, W), or any multiple of it.
        matrix: (B, 3, 3) float32, millimetres from the centre of the result to millimetres in the source.
        flips: (B, 3) bool, mirror along (D, H, W).
        blur: (B,) sigma in voxels, 0 for none.
        resolution: (B, 3) share of the voxels kept along (D, H, W), 1 for all.
        noise: (B,) standard deviation over that of the patch, 0 for none.
        noise_seed: (B,) int64.
        brightness, contrast, gamma: (B,) factors and exponent, 1 for none.
        inverted: (B,) bool, gamma acts on the negative.
    """

    size: Triple
    spacing: FloatTriple
    matrix: Tensor
    flips: Tensor
    blur: Tensor
    resolution: Tensor
    noise: Tensor
    noise_seed: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    inverted: Tensor


def safe_flip_axes(label_names: Iterable[str]) -> tuple[AxisName, ...]:
    """Return the axes that may be mirrored: the left-right axis W, unless a label tells left from right."""
    return () if any(_LATERAL.search(name) for name in label_names) else ("W",)


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

    def sometimes(probability: float, limits: tuple[float, float], neutral: float) -> Tensor:
        return torch.where(chance(probability), uniform(limits), neutral)

    ratio = torch.tensor(spacing) / min(spacing)
    coarse = (ratio > ANISOTROPIC) & (ratio == ratio.max())
    spatial = chance(settings.p_spatial)
    limit = math.radians(settings.rotation_degrees)
    angles = uniform((-limit, limit), 3) * spatial[:, None]
    if coarse.any():
        angles = angles * coarse
    scale = torch.where(spatial, uniform(settings.scale), 1.0)
    resolution = sometimes(settings.p_low_resolution, settings.low_resolution, 1.0)
    return AugmentationPlan(
        size=(d, h, w),
        spacing=spacing,
        matrix=rotation(angles) / scale[:, None, None],
        flips=(torch.rand(batch, 3, generator=generator) < 0.5)
        & torch.tensor([axis in settings.flip_axes for axis in ("D", "H", "W")]),
        blur=sometimes(settings.p_blur, settings.blur, 0.0),
        resolution=torch.where(coarse, 1.0, resolution[:, None]),
        noise=sometimes(settings.p_noise, settings.noise, 0.0),
        noise_seed=torch.randint(2**62, (batch,), generator=generator),
        brightness=sometimes(settings.p_brightness, settings.brightness, 1.0),
        contrast=sometimes(settings.p_contrast, settings.contrast, 1.0),
        gamma=sometimes(settings.p_gamma, settings.gamma, 1.0),
        inverted=chance(settings.p_gamma_inverted),
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
    _smooth(image, plan)
    _add_noise(image, plan)
    _change_contrast(image, plan)
    _change_gamma(image, plan)
    return image, label


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
    """Rotate, scale and mirror into fresh tensors of ``plan.size``."""
    device, source = image.device, image.shape[2:]
    moved = (plan.matrix != torch.eye(3)).flatten(1).any(1).nonzero()[:, 0]
    centre = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(source, plan.size, strict=True))
    new_image, new_label = image[:, :, *centre].clone(), label[:, *centre].clone()
    if len(moved):
        # grid_sample measures in half sides of the array, along (W, H, D).
        half = torch.tensor(plan.spacing) / 2
        to_mm, from_mm = torch.tensor(plan.size) * half, 1 / (torch.tensor(source) * half)
        theta = (from_mm[:, None] * plan.matrix[moved] * to_mm).flip(1, 2)
        theta, moved = F.pad(theta, (0, 1)).to(image), moved.to(device)
        grid = F.affine_grid(theta, [len(moved), 1, *plan.size], align_corners=False)
        old = image[moved]
        lowest = old.amin((2, 3, 4), keepdim=True)
        new_image[moved] = F.grid_sample(old - lowest, grid, align_corners=False) + lowest
        # Nearest: one pass for any number of labels, and borders move half a voxel at most.
        old_label = label[moved, None].to(image.dtype)
        new_label[moved] = F.grid_sample(old_label, grid, "nearest", align_corners=False)[:, 0].to(
            label.dtype
        )
    for axis in range(3):
        index = plan.flips[:, axis].nonzero()[:, 0].to(device)
        if len(index):
            new_image[index] = new_image[index].flip(axis + 2)
            new_label[index] = new_label[index].flip(axis + 1)
    return new_image, new_label


def _smooth(image: Tensor, plan: AugmentationPlan) -> None:
    """Blur and sample down and up again, in place: one (S, S) matrix for each axis of S voxels."""
    active = ((plan.blur > 0) | (plan.resolution < 1).any(1)).nonzero()[:, 0]
    if not len(active):
        return
    along_d, along_h, along_w = (
        torch.stack(
            [smoothing_matrix(side, plan.blur[i].item(), plan.resolution[i, axis].item()) for i in active]
        ).to(image)
        for axis, side in enumerate(plan.size)
    )
    index = active.to(image.device)
    patch = image[index]
    shape = patch.shape
    patch = along_h[:, None, None] @ (patch @ along_w[:, None, None].mT)
    image[index] = (along_d[:, None] @ patch.flatten(3)).view(shape)


def smoothing_matrix(side: int, sigma: float, resolution: float) -> Tensor:
    """Return the (side, side) matrix that blurs a line of voxels, then averages and re-interpolates it.

    Args:
        side: number of voxels.
        sigma: of the Gaussian, voxels; 0 for none. Rows are normalised, so borders do not darken.
        resolution: share of the voxels kept in between, (0, 1].
    """
    matrix = torch.eye(side)
    if resolution < 1:
        kept = max(1, round(side * resolution))
        coarse = F.interpolate(matrix[None], size=kept, mode="area")
        matrix = F.interpolate(coarse, size=side, mode="linear")[0].T
    if sigma > 0:
        places = torch.arange(side, dtype=torch.float32)
        kernel = (-((places[:, None] - places) ** 2) / (2 * sigma**2)).exp()
        matrix = matrix @ (kernel / kernel.sum(1, keepdim=True))
    return matrix


def _add_noise(image: Tensor, plan: AugmentationPlan) -> None:
    for i in plan.noise.nonzero()[:, 0].tolist():
        generator = torch.Generator(image.device).manual_seed(int(plan.noise_seed[i]))
        noise = torch.randn(image[i].shape, generator=generator, device=image.device, dtype=image.dtype)
        image[i] += noise * image[i].std(correction=0) * plan.noise[i].item()


def _change_contrast(image: Tensor, plan: AugmentationPlan) -> None:
    """Multiply intensities, then their distance to the mean, the latter within the range they had."""
    index = (plan.brightness != 1).nonzero()[:, 0].to(image.device)
    if len(index):
        image[index] *= _per_sample(plan.brightness, index).to(image)
    index = (plan.contrast != 1).nonzero()[:, 0].to(image.device)
    if len(index):
        patch = image[index]
        mean = patch.mean((2, 3, 4), keepdim=True)
        low, high = patch.amin((2, 3, 4), keepdim=True), patch.amax((2, 3, 4), keepdim=True)
        changed = mean + (patch - mean) * _per_sample(plan.contrast, index).to(image)
        image[index] = torch.maximum(torch.minimum(changed, high), low)


def _change_gamma(image: Tensor, plan: AugmentationPlan) -> None:
    """Bend intensities by a power of their place in the range; mean and spread stay."""
    index = (plan.gamma != 1).nonzero()[:, 0].to(image.device)
    if not len(index):
        return
    tiny = torch.finfo(image.dtype).eps
    patch = image[index] * torch.where(_per_sample(plan.inverted, index), -1.0, 1.0).to(image)
    deviation, mean = torch.std_mean(patch, (2, 3, 4), correction=0, keepdim=True)
    low = patch.amin((2, 3, 4), keepdim=True)
    width = (patch.amax((2, 3, 4), keepdim=True) - low).clamp(min=tiny)
    bent = ((patch - low) / width) ** _per_sample(plan.gamma, index).to(image)
    spread, centre = torch.std_mean(bent, (2, 3, 4), correction=0, keepdim=True)
    bent = (bent - centre) * (deviation / spread.clamp(min=tiny)) + mean
    image[index] = bent * torch.where(_per_sample(plan.inverted, index), -1.0, 1.0).to(image)


def _per_sample(values: Tensor, index: Tensor) -> Tensor:
    """Return the values (B,) of some samples, shaped to act on (n, C, D, H, W)."""
    return values[index.to(values.device)].view(-1, 1, 1, 1, 1)
