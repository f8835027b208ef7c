"""Other intensities for the same anatomy: noise, blur, low resolution, brightness, contrast and gamma.

Fine-tuning and pretext tasks share these; kinds and probabilities follow nnU-Net (Isensee et al. 2021,
supplementary note 4). Blur and low resolution are linear along each axis, so both together are one small
matrix for each axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from misfm.batches import sent
from misfm.settings import Probability, Range, Settings


class IntensitySettings(Settings):
    """How strongly and how often intensities are varied; ranges are uniform and inclusive."""

    p_noise: Probability = 0.1
    """Share of patches with Gaussian noise."""
    noise: Range = (0.02, 0.3)
    """Standard deviation of the noise over that of the patch."""
    p_blur: Probability = 0.2
    """Share of patches blurred."""
    blur: Range = (0.5, 1.0)
    """Sigma of the Gaussian blur, voxels."""
    p_low_resolution: Probability = 0.25
    """Share of patches sampled down and up again."""
    low_resolution: Range = (0.5, 1.0)
    """Share of the voxels kept along an axis."""
    p_brightness: Probability = 0.15
    """Share of patches multiplied by a factor."""
    brightness: Range = (0.75, 1.25)
    """Factor of all intensities."""
    p_contrast: Probability = 0.15
    """Share of patches with another contrast."""
    contrast: Range = (0.75, 1.25)
    """Factor of the distance to the mean."""
    p_gamma: Probability = 0.3
    """Share of patches with a gamma curve."""
    gamma: Range = (0.7, 1.5)
    """Exponent on intensities scaled to 0..1."""
    p_gamma_inverted: Probability = 0.25
    """Share of gamma curves that act on the negative image."""


@dataclass(frozen=True)
class IntensityPlan:
    """What happens to the intensities of each of B patches; neutral values leave a patch as it is.

    Attributes:
        blur: (B,) sigma in voxels, 0 for none.
        resolution: (B, 3) share of the voxels kept along (D, H, W), 1 for all.
        noise: (B,) standard deviation over that of the patch, 0 for none.
        noise_seed: (B,) int64.
        brightness, contrast, gamma: (B,) factors and exponent, 1 for none.
        inverted: (B,) bool, gamma acts on the negative.
    """

    blur: Tensor
    resolution: Tensor
    noise: Tensor
    noise_seed: Tensor
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor
    inverted: Tensor


def sample_intensities(
    batch: int,
    settings: IntensitySettings,
    generator: torch.Generator,
    *,
    resolution: Tensor | None = None,
) -> IntensityPlan:
    """Draw a plan for ``batch`` patches.

    Args:
        batch: B.
        settings: strengths and probabilities.
        generator: a CPU generator; the same state gives the same plan on any device.
        resolution: (B, 3), of :func:`sample_resolution`, where the caller treats axes differently; else it is
            drawn first.
    """

    def sometimes(probability: float, limits: Range, neutral: float) -> Tensor:
        return draw_sometimes(batch, probability, limits, neutral, generator)

    if resolution is None:
        resolution = sample_resolution(batch, settings, generator)
    return IntensityPlan(
        resolution=resolution,
        blur=sometimes(settings.p_blur, settings.blur, 0.0),
        noise=sometimes(settings.p_noise, settings.noise, 0.0),
        noise_seed=torch.randint(2**62, (batch,), generator=generator),
        brightness=sometimes(settings.p_brightness, settings.brightness, 1.0),
        contrast=sometimes(settings.p_contrast, settings.contrast, 1.0),
        gamma=sometimes(settings.p_gamma, settings.gamma, 1.0),
        inverted=torch.rand(batch, generator=generator) < settings.p_gamma_inverted,
    )


def sample_resolution(batch: int, settings: IntensitySettings, generator: torch.Generator) -> Tensor:
    """Draw the share of the voxels kept, (B, 3), equal along the axes of a patch."""
    shares = draw_sometimes(batch, settings.p_low_resolution, settings.low_resolution, 1.0, generator)
    return shares[:, None].repeat(1, 3)


def draw_sometimes(
    batch: int, probability: float, limits: Range, neutral: float, generator: torch.Generator
) -> Tensor:
    """Draw (B,) numbers, uniform within ``limits`` with a probability, else ``neutral``."""
    chosen = torch.rand(batch, generator=generator) < probability
    drawn = limits[0] + (limits[1] - limits[0]) * torch.rand(batch, generator=generator)
    return torch.where(chosen, drawn, neutral)


def apply_intensities(image: Tensor, plan: IntensityPlan) -> Tensor:
    """Return (B, C, D, H, W) with other intensities; pure, deterministic, on the device of its input."""
    image = image.clone()
    _smooth(image, plan)
    _add_noise(image, plan)
    _change_contrast(image, plan)
    _change_gamma(image, plan)
    return image


def _smooth(image: Tensor, plan: IntensityPlan) -> None:
    """Blur and sample down and up again, in place: one (S, S) matrix for each axis of S voxels."""
    active = ((plan.blur > 0) | (plan.resolution < 1).any(1)).nonzero()[:, 0]
    if not len(active):
        return
    along_d, along_h, along_w = (
        sent(
            torch.stack(
                [smoothing_matrix(side, plan.blur[i].item(), plan.resolution[i, axis].item()) for i in active]
            ),
            image,
        )
        for axis, side in enumerate(image.shape[2:])
    )
    index = sent(active, image.device)
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


def _add_noise(image: Tensor, plan: IntensityPlan) -> None:
    for i in plan.noise.nonzero()[:, 0].tolist():
        generator = torch.Generator(image.device).manual_seed(int(plan.noise_seed[i]))
        noise = torch.randn(image[i].shape, generator=generator, device=image.device, dtype=image.dtype)
        image[i] += noise * image[i].std(correction=0) * plan.noise[i].item()


def _change_contrast(image: Tensor, plan: IntensityPlan) -> None:
    """Multiply intensities, then their distance to the mean, the latter within the range they had."""
    rows = (plan.brightness != 1).nonzero()[:, 0]
    if len(rows):
        image[sent(rows, image.device)] *= _per_sample(plan.brightness, rows, image)
    rows = (plan.contrast != 1).nonzero()[:, 0]
    if len(rows):
        index = sent(rows, image.device)
        patch = image[index]
        mean = patch.mean((2, 3, 4), keepdim=True)
        low, high = patch.amin((2, 3, 4), keepdim=True), patch.amax((2, 3, 4), keepdim=True)
        changed = mean + (patch - mean) * _per_sample(plan.contrast, rows, image)
        image[index] = torch.maximum(torch.minimum(changed, high), low)


def _change_gamma(image: Tensor, plan: IntensityPlan) -> None:
    """Raise intensities, scaled to their range, to a power; mean and standard deviation stay."""
    rows = (plan.gamma != 1).nonzero()[:, 0]
    if not len(rows):
        return
    tiny = torch.finfo(image.dtype).eps
    index, sign = sent(rows, image.device), _per_sample(torch.where(plan.inverted, -1.0, 1.0), rows, image)
    patch = image[index] * sign
    deviation, mean = torch.std_mean(patch, (2, 3, 4), correction=0, keepdim=True)
    low = patch.amin((2, 3, 4), keepdim=True)
    width = (patch.amax((2, 3, 4), keepdim=True) - low).clamp(min=tiny)
    bent = ((patch - low) / width) ** _per_sample(plan.gamma, rows, image)
    spread, centre = torch.std_mean(bent, (2, 3, 4), correction=0, keepdim=True)
    bent = (bent - centre) * (deviation / spread.clamp(min=tiny)) + mean
    image[index] = bent * sign


def _per_sample(values: Tensor, rows: Tensor, image: Tensor) -> Tensor:
    """Return the values (B,) of some samples (n,), both on the CPU, shaped to act on (n, C, D, H, W)."""
    return sent(values[rows], image).view(-1, 1, 1, 1, 1)
