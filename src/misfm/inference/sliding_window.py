"""Gaussian sliding window over a volume of any size, in memory bounded by one row of windows.

Windows lie on a regular lattice and their weights are products of one profile for each axis. Profiles are
normalised where they are made: at each voxel those of all windows sum to one, so accumulated logits need no
division, and a slice is final once the last window that holds it is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, product

import torch
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.models.heads import finest
from misfm.volume import Shape


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return first voxels of windows that cover ``length`` voxels and overlap by at least the given share.

    They are spread evenly from 0 to ``length - window``; one window at 0 where the line is shorter.

    Raises:
        ConfigError: ``overlap`` lies outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ConfigError(
            f"The overlap of windows is a share from 0 to below 1, got {overlap}; usual is 0.5."
        )
    spare = max(0, length - window)
    gaps = math.ceil(spare / max(1, int(window * (1 - overlap))))
    return [0] if gaps == 0 else [round(spare * i / gaps) for i in range(gaps + 1)]


def gaussian_weights(length: int, sigma_scale: float = 1 / 8) -> Tensor:
    """Return a strictly positive bell (length,) float32 with peak 1 at the centre.

    Args:
        length: voxels of the window along one axis.
        sigma_scale: standard deviation as a share of the length; 1/8 as in nnU-Net (Isensee et al. 2021).
    """
    offset = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
    return (-0.5 * (offset / (sigma_scale * length)) ** 2).exp()


def blending_profiles(length: int, window: int, overlap: float) -> list[tuple[int, Tensor]]:
    """Return start and weights (window,) of each window along an axis; they sum to one at each voxel."""
    bell = gaussian_weights(window)
    starts = window_starts(length, window, overlap)
    total = torch.zeros(max(length, window))
    for start in starts:
        total[start : start + window] += bell
    return [(start, bell / total[start : start + window]) for start in starts]


def num_passes(
    shape: Shape, window: Shape, *, overlap: float = 0.5, batch_size: int = 1, mirror_axes: Sequence[int] = ()
) -> int:
    """How often :func:`predict_logits` calls the network for a volume (D, H, W)."""
    d, h, w = (len(window_starts(side, size, overlap)) for side, size in zip(shape, window, strict=True))
    return d * math.ceil(h * w / batch_size) * (1 << len(mirror_axes))


def predict_logits(
    network: nn.Module,
    image: Tensor,
    window: Shape,
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
) -> Iterator[tuple[int, Tensor]]:
    """Run a network over a volume and yield blended logits from the first slice to the last.

    Holds (K, window D, H, W) float32 at a time, on the network's device; a volume that is smaller than the
    window is padded around with each channel's lowest value.

    Args:
        network: in eval mode; (B, C, *window) to logits (B, K, *window) of any float type, or a list of which
            the first is taken.
        image: (C, D, H, W), any type and device; windows are moved and cast to float32 one batch at a time.
        window: voxels along (D, H, W).
        overlap: least share of a window that its neighbour repeats, [0, 1).
        batch_size: windows in one pass.
        mirror_axes: spatial axes (0, 1, 2) over whose mirrored combinations logits are averaged.

    Yields:
        First slice and logits (K, d, H, W) of consecutive slabs that together make up the volume. They are
        never written again.
    """
    shape = image.shape[1:]
    image, (first_d, first_h, first_w) = pad_to_window(image, window)
    along_d, along_h, along_w = (
        blending_profiles(side, size, overlap) for side, size in zip(image.shape[1:], window, strict=True)
    )
    columns = list(product(along_h, along_w))
    device = next((parameter.device for parameter in network.parameters()), image.device)
    inside = (slice(first_h, first_h + shape[1]), slice(first_w, first_w + shape[2]))
    row: Tensor | None = None
    for i, (d, weight_d) in enumerate(along_d):
        for chunk in (columns[j : j + batch_size] for j in range(0, len(columns), batch_size)):
            where = [_window_slices((h, w), window[1:]) for (h, _), (w, _) in chunk]
            patches = torch.stack([image[:, d : d + window[0], *place] for place in where])
            logits = _network_logits(network, patches.to(device, torch.float32), mirror_axes)
            if row is None:
                row = logits.new_zeros(logits.shape[1], window[0], *image.shape[2:])
            for one, place, ((_, weight_h), (_, weight_w)) in zip(logits, where, chunk, strict=True):
                weight = weight_d[:, None, None] * (weight_h[:, None] * weight_w)
                row[:, :, *place].addcmul_(one, weight.to(device))
        assert row is not None
        finished = along_d[i + 1][0] - d if i + 1 < len(along_d) else window[0]
        yield d, row[:, first_d : first_d + min(finished, shape[0]), *inside]
        # A new tensor rather than a shift in place: what was yielded stays valid.
        row = torch.cat([row[:, finished:], torch.zeros_like(row[:, :finished])], dim=1)


def pad_to_window(image: Tensor, window: Shape) -> tuple[Tensor, Shape]:
    """Surround (C, D, H, W) with each channel's lowest value up to the window; return where it starts."""
    missing = [max(0, size - side) for size, side in zip(window, image.shape[1:], strict=True)]
    d, h, w = (n // 2 for n in missing)
    if not any(missing):
        return image, (0, 0, 0)
    lowest = image.amin((1, 2, 3), keepdim=True)
    sides = [side + n for side, n in zip(image.shape[1:], missing, strict=True)]
    padded = lowest.repeat(1, *sides)
    padded[:, d : d + image.shape[1], h : h + image.shape[2], w : w + image.shape[3]] = image
    return padded, (d, h, w)


def _window_slices(starts: tuple[int, int], sizes: tuple[int, int]) -> tuple[slice, slice]:
    (h, w), (height, width) = starts, sizes
    return slice(h, h + height), slice(w, w + width)


@torch.no_grad()
def _network_logits(network: nn.Module, patches: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Return float32 logits (B, K, D, H, W), the mean over all mirrored versions."""
    flips = list(chain.from_iterable(combinations(mirror_axes, n) for n in range(len(mirror_axes) + 1)))
    total: Tensor | None = None
    for axes in flips:
        dims = [axis + 2 for axis in axes]
        logits = finest(network(patches.flip(dims) if dims else patches)).float()
        logits = logits.flip(dims) if dims else logits
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(flips) if len(flips) > 1 else total
