r"""Images for label maps: every structure gets an intensity of its own, drawn anew for each patch.

.. math::
    x(v) = b(v) \left( \sum_u w(v - u) \, \mu_{y(u)} + \sigma_{y(v)} \, n(v) \right),
    \qquad \mu_k \sim U(-1, 1), \quad \sigma_k \sim U(0, s)

where y is the label map, w, which is 1/4, 1/2, 1/4 along each axis, the partial volume at borders, n noise
that is white or correlated over some voxels, and b a smooth bias field. A network that is taught on such
images has to tell structures by shape and place, whatever the contrast: Billot et al., SynthSeg, arXiv
2107.09559. Both sides of a paired structure look alike, as they do in scans. Some patches look like CT
instead (:meth:`LabelTable.like_ct`), and some show nothing around what is segmented, as scans without skull.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from misfm.batches import sent
from misfm.settings import Probability, Settings
from misfm.synthesis.label_table import FIRST, LabelTable

PALETTE = (-1.0, -0.7, -0.4, -0.35, 0.2, 0.9)
"""Of unnamed structures in an image that looks like CT: air, fat, soft tissue, soft bone, bone, in a window
of -200 to 600 HU that is mapped to [-1, 1]."""
WINDOW = (200.0, 400.0)
"""Centre and half the width of that window, HU."""
FIELD, GRAIN = 4, 3
"""Control points of a bias field along an axis; voxels that correlated noise extends over."""


class AppearanceSettings(Settings):
    """How images are drawn for label maps."""

    p_ct: Probability = 0.3
    """Share of patches that look like CT, in a fixed window; the others have any contrast, and are normalised
    as MR is."""
    p_stripped: Probability = 0.2
    """Share of people's patches without the surroundings of what is segmented."""
    p_dark: Probability = 0.7
    """Share of patches whose background is as dark as anything in them."""
    noise: Annotated[float, Field(ge=0)] = 0.15
    """Largest standard deviation s within a structure; intensities have a range of 2."""
    bias: Annotated[float, Field(ge=0)] = 0.3
    """Largest standard deviation of the logarithm of the bias field at its control points."""
    p_thick: Probability = 0.3
    """Share of patches with thick slices along one axis."""
    thick: tuple[float, float] = (0.25, 0.8)
    """Share of the voxels kept along that axis."""


@dataclass(frozen=True)
class Appearance:
    """How each of B patches is drawn.

    Attributes:
        means, deviations: (B, V) of each label value.
        noise: (B, D, H, W), of unit variance.
        bias: (B, 1, 4, 4, 4), logarithm at the control points.
        is_ct: (B,) bool, in the window; others are normalised.
        resolution: (B, 3), share of the voxels kept along each axis.
    """

    means: Tensor
    deviations: Tensor
    noise: Tensor
    bias: Tensor
    is_ct: Tensor
    resolution: Tensor


def sample_appearance(
    shape: tuple[int, int, int, int], table: LabelTable, settings: AppearanceSettings, generator: Generator
) -> Appearance:
    """Draw how patches of ``shape`` (B, D, H, W) look."""
    batch, values = shape[0], FIRST + len(table.names)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    means = 2 * uniform(batch, values) - 1
    means = torch.minimum(means, means[:, table.mirrored()]) if table.names else means
    background = [0, FIRST] if table.names else [0]
    is_dark = uniform(batch, 1) < settings.p_dark
    means[:, background] = torch.where(is_dark, -1.0, means[:, background])
    is_ct = uniform(batch) < settings.p_ct
    ct = ct_means(batch, table, generator)
    means[:, FIRST:] = torch.where(is_ct[:, None], ct, means[:, FIRST:])
    stripped = uniform(batch, 1) < settings.p_stripped
    around = slice(FIRST + 1 + table.num_targets, None)
    means[:, around] = torch.where(stripped, means[:, [background[-1]]], means[:, around])
    deviations = settings.noise * uniform(batch, values) * uniform(batch, 1)
    deviations[:, background] *= uniform(batch, 1)
    noise = torch.randn(shape, generator=generator)
    small = [max(2, side // GRAIN) for side in shape[1:]]
    grains = F.interpolate(torch.randn(batch, 1, *small, generator=generator), shape[1:], mode="trilinear")
    share = uniform(batch, 1, 1, 1)
    bias = settings.bias * uniform(batch, 1, 1, 1, 1)
    thick = settings.thick[0] + (settings.thick[1] - settings.thick[0]) * uniform(batch, 1)
    along = F.one_hot(torch.randint(3, (batch,), generator=generator), 3) * (
        uniform(batch, 1) < settings.p_thick
    )
    return Appearance(
        means=means,
        deviations=deviations,
        noise=(1 - share) * noise + share * 1.6 * grains[:, 0],
        bias=bias * torch.randn(batch, 1, FIELD, FIELD, FIELD, generator=generator),
        is_ct=is_ct,
        resolution=torch.where(along > 0, thick, 1.0),
    )


def ct_means(batch: int, table: LabelTable, generator: Generator) -> Tensor:
    """Draw (B, names) what CT shows, in the window; the unnamed take what they get from :data:`PALETTE`."""
    known = table.like_ct()
    drawn = torch.tensor(PALETTE)[torch.randint(len(PALETTE), (batch, len(known)), generator=generator)]
    if known:
        shown = torch.tensor([torch.nan if hu is None else (hu - WINDOW[0]) / WINDOW[1] for hu in known])
        drawn = torch.where(shown.isnan(), drawn, shown)
    return (drawn + 0.04 * torch.randn(drawn.shape, generator=generator)).clamp(-1, 1)


def apply_appearance(labels: Tensor, real: Tensor, plan: Appearance) -> Tensor:
    """Draw images (B, 1, D, H, W) for label maps.

    Args:
        labels: (B, D, H, W) int64, stored values.
        real: (B, D, H, W) bool, what lies inside of the volume and was not removed; the rest gets the
            lowest value.
        plan: see :func:`sample_appearance`.
    """
    means, deviations, noise, bias, is_ct = (
        sent(each, labels.device)
        for each in (plan.means, plan.deviations, plan.noise, plan.bias, plan.is_ct.view(-1, 1, 1, 1))
    )
    picked = torch.stack([own[where] for own, where in zip(means, labels, strict=True)])
    spread = torch.stack([own[where] for own, where in zip(deviations, labels, strict=True)])
    image = soften(picked) + spread * noise
    field = F.interpolate(bias, labels.shape[1:], mode="trilinear", align_corners=True)[:, 0]
    image = torch.where(is_ct, image.clamp(-1, 1), normalised((image + 1) * field.exp(), real))
    lowest = image.masked_fill(~real, torch.inf).amin((1, 2, 3), keepdim=True)
    lowest = torch.where(lowest.isinf(), image.amin((1, 2, 3), keepdim=True), lowest)
    return torch.where(real, image, lowest)[:, None]


def normalised(image: Tensor, real: Tensor) -> Tensor:
    """Give images (B, D, H, W) the mean 0 and deviation 1 over voxels that are real, as MR has it.

    Images with less than two of these stay as they are.
    """
    space = (1, 2, 3)
    count = real.sum(space, keepdim=True)
    mean = (image * real).sum(space, keepdim=True) / count.clamp(min=1)
    squares = ((image - mean) * real).square().sum(space, keepdim=True)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=0.05)
    return torch.where(count > 1, ((image - mean) / deviation).clamp(-5, 5), image)


def soften(volumes: Tensor) -> Tensor:
    """Blur (B, D, H, W) by the weights 1/4, 1/2, 1/4 along each axis, values repeated beyond the edges."""
    padded = F.pad(volumes[:, None], (1,) * 6, mode="replicate")
    return F.avg_pool3d(F.avg_pool3d(padded, 2, 1), 2, 1)[:, 0]


def recolour(labels: Tensor, shifts: Tensor) -> Tensor:
    """Return by how much voxels (B, D, H, W) change where each label value (B, V) gets lighter or darker."""
    shifts = sent(shifts, labels.device)
    return soften(torch.stack([own[where] for own, where in zip(shifts, labels, strict=True)]))
