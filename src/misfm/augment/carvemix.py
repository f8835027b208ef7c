"""CarveMix (Zhang et al. 2021, arXiv 2107.12527): an organ and its surroundings, put into another scan.

Published for lesions, of which an image has one kind; here the region is that of one label, drawn among those
of the donor's patch. Image and label map are pasted at the place they have in the donor's patch, with
all that lies within the region: other organs, and voxels that were not annotated.
"""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfm.batches import sent
from misfm.volume import FloatTriple


@dataclass(frozen=True)
class CarveMixPlan:
    """What each of B samples receives.

    Attributes:
        donor: (B,) int64, the sample it receives from; its own index for none.
        choice: (B,) in [0, 1), which of the labels in the donor's patch, in ascending order.
        margin: (B,) in (-0.5, 1), where to cut: the signed distance to the label's surface, over the largest
            depth of the label. Negative lies within, positive takes surroundings along.
    """

    donor: Tensor
    choice: Tensor
    margin: Tensor


def sample_carvemix(batch: int, probability: float, generator: torch.Generator) -> CarveMixPlan:
    """Draw a plan for ``batch`` samples; a sample alone in its batch receives nothing.

    The margin is drawn within the organ and outside of it with equal odds (paper, section 2.2).
    """
    chosen = torch.rand(batch, generator=generator) < probability
    shifts = torch.randint(1, max(batch, 2), (batch,), generator=generator)
    choice, inwards, share = torch.rand(3, batch, generator=generator)
    samples = torch.arange(batch)
    donor = torch.where(chosen, (samples + shifts) % batch, samples)
    return CarveMixPlan(donor, choice, torch.where(inwards < 0.5, -0.5 * share, share))


def apply_carvemix(
    image: Tensor, label: Tensor, plan: CarveMixPlan, spacing: FloatTriple
) -> tuple[Tensor, Tensor]:
    """Paste regions of donors; pure, deterministic, on the device of its input.

    Padding is neither pasted nor pasted over. Distances are computed on the CPU.

    Args:
        image: (B, C, D, H, W) float, not yet augmented, so that padding can be recognised by its planes.
        label: (B, D, H, W) integer; only values above 0 are carved. Best on the CPU, wherever the image is.
        plan: what to do.
        spacing: mm per voxel along (D, H, W), or any multiple of it.

    Returns:
        Image and label of the given shapes, both where the image is; the input itself where nobody receives
        anything.
    """
    receivers = (plan.donor != torch.arange(len(plan.donor))).nonzero()[:, 0]
    if not len(receivers):
        return image, sent(label, image.device)
    donors = plan.donor[receivers]
    maps = label[donors.to(label.device)].cpu().numpy()
    carved = [
        carve(values, plan.choice[i].item(), plan.margin[i].item(), spacing)
        for i, values in zip(receivers, maps, strict=True)
    ]
    region = sent(torch.from_numpy(np.stack(carved)), image.device)
    receivers, donors, label = (sent(each, image.device) for each in (receivers, donors, label))
    real = inside_volume(image)
    region &= real[donors] & real[receivers]
    mixed_image, mixed_label = image.clone(), label.clone()
    mixed_image[receivers] = torch.where(region[:, None], image[donors], image[receivers])
    mixed_label[receivers] = torch.where(region, label[donors], label[receivers])
    return mixed_image, mixed_label


def carve(label: NDArray[np.int64], choice: float, margin: float, spacing: FloatTriple) -> NDArray[np.bool_]:
    """Return the region (D, H, W) in which the signed distance to one label is at most a drawn threshold.

    Args:
        label: (D, H, W).
        choice, margin: of a :class:`CarveMixPlan`.
        spacing: mm per voxel along (D, H, W).
    """
    present = np.unique(label[label > 0])
    if not len(present):
        return np.zeros(label.shape, dtype=np.bool_)
    organ = np.ascontiguousarray(label == present[int(choice * len(present))])
    if organ.all():
        return organ
    inside = edt.edt(organ, anisotropy=spacing, parallel=1)
    threshold = margin * inside.max()
    if threshold < 0:
        return np.asarray(-inside <= threshold)
    return np.asarray(edt.edt(~organ, anisotropy=spacing, parallel=1) <= threshold)


def inside_volume(image: Tensor) -> Tensor:
    """Mask (B, D, H, W) of the voxels that are not padding.

    Padding holds the lowest value and fills whole planes from a border of the patch inwards. A plane of
    nothing but air looks the same, and is no loss.

    Args:
        image: (B, C, D, H, W).
    """
    empty = (image == image.amin((2, 3, 4), keepdim=True)).all(1)
    real = torch.ones_like(empty)
    for axis in (1, 2, 3):
        others = [other for other in (1, 2, 3) if other != axis]
        planes = empty.all(others[1]).all(others[0])
        padded = planes.cummin(1).values | planes.flip(1).cummin(1).values.flip(1)
        real &= ~padded.view(len(image), *[-1 if other == axis else 1 for other in (1, 2, 3)])
    return real
