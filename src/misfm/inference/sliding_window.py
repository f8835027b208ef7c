"""Gaussian sliding window over a volume of any size, in memory bounded by one row of windows.

Windows lie on a regular lattice and their weights are products of one profile for each axis. Profiles are
normalised where they are made: at each voxel those of all windows sum to one, so accumulated logits need no
division, and a slice is final once the last window that holds it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from misfm.errors import ConfigError
from misfm.inference.passes import Batching, Passes
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


def predict_logits(
    network: nn.Module,
    image: Tensor,
    window: Shape,
    *,
    overlap: float = 0.5,
    batch_size: int = 1,
    mirror_axes: Sequence[int] = (),
) -> Iterator[tuple[int, Tensor]]:
    """Run a network over a volume and yield blended logits; see :func:`blended_logits`.

    Args:
        network: in eval mode; (B, C, *window) to logits (B, K, *window) of any float type, or a list of which
            the first is taken.
        image: as there, normalised.
        window: as there.
        overlap: as there.
        batch_size: windows in one pass.
        mirror_axes: spatial axes (0, 1, 2) over whose mirrored combinations logits are averaged.
    """
    passes = Passes(network, batching=Batching(batch_size), mirror_axes=mirror_axes)
    return blended_logits(passes, image, window, overlap=overlap)


def blended_logits(
    passes: Passes,
    image: Tensor,
    window: Shape,
    *,
    overlap: float = 0.5,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run a network over a volume and yield blended logits from the first slice to the last.

    Holds (K, window D, H, W) float32 at a time, on the network's device; a volume that is smaller than the
    window is padded around with each channel's lowest value.

    Args:
        passes: of the network.
        image: (C, D, H, W), any type and device; windows are moved and prepared one batch at a time.
        window: voxels along (D, H, W).
        overlap: least share of a window that its neighbour repeats, [0, 1).
        progress: called after each window with the share of them that are done.

    Yields:
        First slice and logits (K, d, H, W) of consecutive slabs that together make up the volume. They are
        never written again.
    """
    shape = image.shape[1:]
    image, (first_d, first_h, first_w) = pad_to_window(image, window)
    device = passes.device(image)
    along_d, along_h, along_w = (
        [(start, weights.to(device)) for start, weights in blending_profiles(side, size, overlap)]
        for side, size in zip(image.shape[1:], window, strict=True)
    )
    columns = list(product(along_h, along_w))
    moved = on_device(image, device)
    inside = (slice(first_h, first_h + shape[1]), slice(first_w, first_w + shape[2]))
    row: Tensor | None = None
    for i, (d, weight_d) in enumerate(along_d):
        where = [_window_slices((h, w), window[1:]) for (h, _), (w, _) in columns]
        found = passes.over(image, ((slice(d, d + window[0]), *place) for place in where), moved)
        for j, (logits, place, ((_, weight_h), (_, weight_w))) in enumerate(
            zip(found, where, columns, strict=True), start=1
        ):
            if row is None:
                row = logits.new_zeros(len(logits), window[0], *image.shape[2:])
            row[:, :, *place].addcmul_(logits, weight_d[:, None, None] * (weight_h[:, None] * weight_w))
            if progress is not None:
                progress((i + j / len(columns)) / len(along_d))
        assert row is not None
        finished = along_d[i + 1][0] - d if i + 1 < len(along_d) else window[0]
        yield d, row[:, first_d : first_d + min(finished, shape[0]), *inside]
        # A new tensor rather than a shift in place: what was yielded stays valid.
        row = torch.cat([row[:, finished:], torch.zeros_like(row[:, :finished])], dim=1)


def on_device(image: Tensor, device: torch.device) -> Tensor:
    """Return an image where the network is, if it takes but a small part of the memory there.

    Windows are then cut out where they are needed, instead of each voxel being moved several times.
    """
    if device.type != "cuda":
        return image
    free, _ = torch.cuda.mem_get_info(device)
    return image.to(device) if image.nbytes < free / 8 else image


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
