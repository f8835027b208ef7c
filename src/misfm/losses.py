"""Losses on logits (B, K, D, H, W) and class maps (B, D, H, W).

Sums and counts are those of the whole batch, also where it is shared out to several processes
(:mod:`misfm.world`): each of them calls the same function with its own samples and gets the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from misfm import world

IGNORE = -1
"""Class of voxels that count in no loss and no score."""
MAX_WEIGHT = 10.0
"""Of a voxel of a rare class: a few voxels at the edge of a patch must not outweigh the rest of it."""


def batch_ratio(amount: Tensor, count: Tensor | float) -> Tensor:
    """Sum over count, two scalars, both over all samples of the batch; 0 where the count is."""
    counted = count.to(amount) if isinstance(count, Tensor) else amount.new_full((), count)
    both = world.total(torch.stack([amount, counted]))
    return both[0] / both[1].clamp(min=1)


def batch_mean(values: Tensor) -> Tensor:
    """Mean of all numbers of all samples of the batch; to be used in place of ``values.mean()``."""
    return batch_ratio(values.sum(), values.numel())


def soft_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    background: bool,
    smooth: float = 1e-5,
    counted: Tensor | None = None,
) -> Tensor:
    """Return 1 minus the soft Dice coefficient, a scalar in [0, 1].

    For class k, Dice_k = (2 sum p_k y_k + s) / (sum p_k + sum y_k + s), with sums over the batch and the
    voxels that are not :data:`IGNORE`. A class absent from the target thus scores about 0, which presses its
    probabilities down wherever there are any, and 1 only once they sum to far less than s. The mean over
    classes leaves out class 0 unless ``background``.

    Args:
        logits: (B, K, D, H, W).
        target: (B, D, H, W) int64, values 0..K-1 or :data:`IGNORE`.
        background: count class 0 as a class.
        smooth: s, avoids 0/0.
        counted: (K,) bool, the classes the mean is taken over, class 0 as above, alike in all processes; None
            counts all.
    """
    num_classes = logits.shape[1]
    probabilities = logits.float().softmax(1).flatten(2).transpose(0, 1).flatten(1)
    labels = target.flatten()
    keep = labels != IGNORE
    probabilities = probabilities * keep
    truth = torch.zeros_like(probabilities).scatter_(
        0, labels.clamp(min=0)[None], keep[None].to(probabilities)
    )
    sums = torch.stack([(probabilities * truth).sum(1), probabilities.sum(1) + truth.sum(1)])
    sums = world.total(sums)
    dice = (2 * sums[0] + smooth) / (sums[1] + smooth)
    first = 0 if background or num_classes == 1 else 1
    if counted is None:
        return 1 - dice[first:].mean()
    number = counted[first:].sum().clamp(min=1)
    return ((1 - dice[first:]) * counted[first:]).sum() / number


def cross_entropy_loss(logits: Tensor, target: Tensor, *, balance: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the voxels that are not :data:`IGNORE`; 0 where there are none.

    Args:
        logits: (B, K, D, H, W).
        target: (B, D, H, W) int64, values 0..K-1 or :data:`IGNORE`.
        balance: 0 counts all voxels alike and 1 all classes; between them, a voxel counts by the share of
            its class in ``target`` to the power of minus ``balance``, at most :data:`MAX_WEIGHT`.
    """
    if balance == 0:
        entropy = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
        return batch_ratio(entropy, (target != IGNORE).sum())
    counts = world.total(class_counts(target, logits.shape[1]))
    weights = (counts.sum() / counts.clamp(min=1)).pow(balance).clamp(max=MAX_WEIGHT)
    entropy = F.cross_entropy(logits.float(), target, weights, ignore_index=IGNORE, reduction="sum")
    return world.total(entropy) / (weights * counts).sum().clamp(min=1)


def class_counts(target: Tensor, num_classes: int) -> Tensor:
    """Return how many voxels are of each class, (K,) int64; those of :data:`IGNORE` are of none."""
    if target.device.type == "cpu":
        return torch.bincount(target.flatten() - IGNORE, minlength=num_classes + 1)[1:]
    # A GPU waits for all it has to do before it counts in bins whose number it has to look up.
    return torch.stack([(target == number).sum() for number in range(num_classes)])


def deep_supervision_weights(num_outputs: int) -> list[float]:
    """1, 1/2, 1/4, ... divided by their sum, finest output first (nnU-Net; PyMIC ``deep_sup``)."""
    weights = [0.5**level for level in range(num_outputs)]
    return [weight / sum(weights) for weight in weights]


def merge_unannotated(logits: Tensor, target: Tensor, annotated: Tensor) -> tuple[Tensor, Tensor]:
    """Count classes that were not annotated as background: the marginal loss of Shi et al. 2021 (2007.03868).

    What lies in such a class was drawn as background, so the probability of background is the sum of theirs:
    its logit becomes the ``logsumexp`` of all of them, and their own become minus infinity.

    Args:
        logits: (B, K, D, H, W).
        target: (B, D, H, W) int64, values 0..K-1 or :data:`IGNORE`.
        annotated: (B, K) bool, the classes annotated in each sample; always true for class 0.

    Returns:
        Logits (B, K, D, H, W) float32 and target, in which no such class occurs.
    """
    mask = annotated[:, :, None, None, None]
    logits = logits.float()
    alone = logits.masked_fill(~mask, -torch.inf)
    rest = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(mask[:, 1:], -torch.inf)], 1)
    known = annotated.gather(1, target.clamp(min=0).flatten(1)).view_as(target)
    return torch.cat([rest.logsumexp(1, keepdim=True), alone[:, 1:]], 1), target * known


def segmentation_loss(
    outputs: Tensor | Sequence[Tensor],
    target: Tensor,
    *,
    background: bool = False,
    balance: float = 0.0,
    annotated: Tensor | None = None,
) -> dict[str, Tensor]:
    """Dice and cross-entropy at equal weight, averaged over the outputs of deep supervision.

    Args:
        outputs: logits (B, K, D, H, W), or a list of them, finest first; the target is brought to coarser
            grids by taking the nearest voxel.
        target: (B, D, H, W) int64, values 0..K-1 or :data:`IGNORE`.
        background: count class 0 in the Dice term.
        balance: of classes in the cross-entropy, see :func:`cross_entropy_loss`.
        annotated: (B, K) bool, the classes annotated in each sample, see :func:`merge_unannotated`; None
            stands for all.

    Returns:
        ``{"dice_loss": …, "cross_entropy": …}``, scalars already halved, so that their sum is the loss.
    """
    levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    counted = None if annotated is None else world.total(annotated.sum(0)) > 0
    dice = cross_entropy = target.new_zeros((), dtype=torch.float32)
    for weight, logits in zip(deep_supervision_weights(len(levels)), levels, strict=True):
        labels = shrink(target, logits.shape[2:])
        if annotated is not None:
            logits, labels = merge_unannotated(logits, labels, annotated)
        dice = dice + 0.5 * weight * soft_dice_loss(logits, labels, background=background, counted=counted)
        cross_entropy = cross_entropy + 0.5 * weight * cross_entropy_loss(logits, labels, balance=balance)
    return {"dice_loss": dice, "cross_entropy": cross_entropy}


def region_loss(
    outputs: Tensor | Sequence[Tensor],
    target: Tensor,
    regions: Tensor,
    *,
    balance: float = 0.0,
    annotated: Tensor | None = None,
) -> dict[str, Tensor]:
    """Dice and binary cross-entropy of regions that may overlap, as :func:`segmentation_loss` for classes.

    Each region is a question of its own, inside or outside, answered by the sigmoid of its output.

    Args:
        outputs: logits (B, R, D, H, W), or a list of them, finest first.
        target: (B, D, H, W) int64, classes 0..K-1 or :data:`IGNORE`.
        regions: (R, K) bool, which classes lie in which region.
        balance: 0 counts all voxels alike; up to 1, the rarer of inside and outside of a region weighs more,
            as classes do in :func:`cross_entropy_loss`.
        annotated: (B, R) bool, the regions annotated in each sample, which alone count; None stands for all.

    Returns:
        ``{"dice_loss": …, "binary_cross_entropy": …}``, scalars already halved: their sum is the loss.
    """
    levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    counts = target.new_ones(len(target), len(regions), dtype=torch.bool) if annotated is None else annotated
    dice = cross_entropy = target.new_zeros((), dtype=torch.float32)
    for weight, logits in zip(deep_supervision_weights(len(levels)), levels, strict=True):
        labels = shrink(target, logits.shape[2:])
        inside = in_regions(labels, regions).float()
        keep = (labels != IGNORE)[:, None] & counts[:, :, None, None, None]
        dice = dice + 0.5 * weight * _soft_region_dice(logits, inside, keep)
        cross_entropy = cross_entropy + 0.5 * weight * _binary_cross_entropy(logits, inside, keep, balance)
    return {"dice_loss": dice, "binary_cross_entropy": cross_entropy}


def in_regions(target: Tensor, regions: Tensor) -> Tensor:
    """Return which voxels lie in which region, (B, R, D, H, W) bool; ignored ones in none.

    Args:
        target: (B, D, H, W) int64, classes or :data:`IGNORE`.
        regions: (R, K) bool.
    """
    table = torch.cat([regions, torch.zeros_like(regions[:, :1])], 1).T  # IGNORE, -1, is the last row
    return table[target].movedim(-1, 1)


def _soft_region_dice(logits: Tensor, inside: Tensor, keep: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 minus the mean soft Dice of regions (B, R, D, H, W), with sums over the batch and the kept voxels."""
    axes = (0, 2, 3, 4)
    probabilities = logits.float().sigmoid() * keep
    inside = inside * keep
    counted = keep.any(4).any(3).any(2).any(0)
    parts = (probabilities * inside).sum(axes), probabilities.sum(axes) + inside.sum(axes), counted.float()
    sums = world.total(torch.stack(parts))
    dice, counted = (2 * sums[0] + smooth) / (sums[1] + smooth), sums[2] > 0
    return ((1 - dice) * counted).sum() / counted.sum().clamp(min=1)


def _binary_cross_entropy(logits: Tensor, inside: Tensor, keep: Tensor, balance: float) -> Tensor:
    """Mean binary cross-entropy in nats over the kept voxels of all regions (B, R, D, H, W); 0 for none."""
    weights = keep.float()
    if balance:
        axes = (0, 2, 3, 4)
        kept, within = world.total(
            torch.stack([each.sum(axes, keepdim=True) for each in (keep.float(), inside * keep)])
        )
        rare, common = (
            (kept / count.clamp(min=1)).pow(balance).clamp(max=MAX_WEIGHT)
            for count in (within, kept - within)
        )
        weights = weights * torch.where(inside > 0, rare, common)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), inside, weights, reduction="sum")
    return batch_ratio(entropy, weights.sum())


def shrink(target: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a class map (B, D, H, W) to a coarser grid by taking every second, fourth, … voxel."""
    if target.shape[1:] == tuple(size):
        return target
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def hard_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice of the most likely classes, (K,) in [0, 1]; NaN for a class in neither prediction nor target."""
    num_classes = logits.shape[1]
    keep = target != IGNORE
    predicted, truth = logits.max(1).indices[keep], target[keep]
    confusion = world.total(torch.bincount(truth * num_classes + predicted, minlength=num_classes**2))
    confusion = confusion.view(num_classes, num_classes).double()
    return 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))


def hard_region_dice(logits: Tensor, target: Tensor, regions: Tensor, annotated: Tensor | None) -> Tensor:
    """Dice of the regions found, (R,) in [0, 1], of what :func:`region_loss` takes; NaN for none."""
    keep = (target != IGNORE)[:, None].expand_as(logits)
    if annotated is not None:
        keep = keep & annotated[:, :, None, None, None]
    found, inside = (logits > 0) & keep, in_regions(target, regions) & keep
    axes = (0, 2, 3, 4)
    sums = world.total(torch.stack([(found & inside).sum(axes), found.sum(axes) + inside.sum(axes)]))
    return 2 * sums[0] / sums[1].double()


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Share of each class (num_classes,) among the voxels of the batch that are not :data:`IGNORE`."""
    counts = world.total(class_counts(labels, num_classes))
    return counts / counts.sum().clamp(min=1)


def dice_score(logits: Tensor, labels: Tensor) -> Mapping[str, float]:
    """Mean Dice of the labels, and what guessing by their shares would reach; nothing where none is known."""
    shares = class_shares(labels, logits.shape[1])
    if not bool(shares.any()):
        return {}
    shares = shares[1:]
    present = shares[shares > 0]
    return {
        "pretext_dice": float(hard_dice(logits, labels)[1:].nanmean()),
        "chance_dice": float(present.mean()) if len(present) else 0.0,
    }


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, D, H, W) over the voxels of a mask (B, D, H, W); 0 where it is empty."""
    weight = mask[:, None].to(values)
    return batch_ratio((values * weight).sum(), weight.sum() * values.shape[1])
