"""Pure functions from a Volume to a Volume: orientation, cropping to content, resampling.

Positions are those of voxel centres. Every function returns the affine of its output, so that a landmark
keeps its place in the patient through all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from misfm.data.checks import MAX_SIDE
from misfm.data.intensity import Kind, content_mask, detect, patient_channel
from misfm.errors import DataError
from misfm.memory import available_bytes, in_gib
from misfm.volume import Box, FloatTriple, Shape, Volume, triple

Target = Sequence[float | None] | Literal["native"]
"""Spacing wanted along (D, H, W) in millimetres; None, or "native" for all, keeps what there is."""

ANISOTROPIC = 3.0
"""An axis this many times coarser than the next one is never interpolated (nnU-Net's threshold)."""
_APART_ML = 2.0
"""Parts of this many ml, a fingertip, are of the patient wherever they lie: arms beside the trunk, hands."""
_RESAMPLING_BYTES = 12
"""Memory that a voxel of a resampled volume takes meanwhile: float32, before and after an axis is turned."""


def canonical(volume: Volume) -> Volume:
    """Permute and flip axes so that (D, H, W) grow towards superior, posterior, left ("SPL").

    That is how SimpleITK shows a file with identity direction, and how published weights saw the body.
    Nothing is interpolated: an oblique grid stays oblique, its axes get the nearest directions.
    """
    turned = volume.turned("SPL")
    return turned.with_data(np.ascontiguousarray(turned.data))


def content_box(volume: Volume, kinds: Sequence[Kind] = (), margin_mm: float = 8.0) -> Box:
    """Return the box around the patient, grown by a margin and cut at the border; never empty.

    Parts not connected to the largest one (tubes, noise) do not count unless they have 2 ml, or a tenth of
    its voxels where that is small itself. They are judged at about 4 mm, after an opening: it takes the table
    away, which is thin and mostly touches the skin somewhere.
    """
    mask = content_mask(*patient_channel(volume, kinds or (detect(volume),)))
    step = [max(1, round(4.0 / spacing)) for spacing in volume.spacing]
    coarse = mask[:: step[0], :: step[1], :: step[2]]
    opened = ndimage.binary_opening(np.pad(coarse, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    coarse = opened if opened.any() else coarse if coarse.any() else np.ones_like(coarse)
    parts, _ = ndimage.label(coarse)
    sizes = np.bincount(parts.ravel())[1:]
    voxel_ml = float(np.prod([a * b for a, b in zip(step, volume.spacing, strict=True)])) / 1000
    least = min(sizes.max() / 10, _APART_ML / voxel_ml)
    boxes = [box for box, size in zip(ndimage.find_objects(parts), sizes, strict=True) if size >= least]
    start, stop = [], []
    for axis, (side, spacing) in enumerate(zip(volume.shape, volume.spacing, strict=True)):
        margin = int(np.ceil(margin_mm / spacing)) + step[axis]
        start.append(max(0, min(box[axis].start for box in boxes) * step[axis] - margin))
        stop.append(min(side, (max(box[axis].stop for box in boxes) - 1) * step[axis] + 1 + margin))
    return Box(triple(start), triple(b - a for a, b in zip(start, stop, strict=True)))


def resample(volume: Volume, spacing: Target, *, label: bool = False) -> Volume:
    """Interpolate to another spacing along the volume's own axes; the centre of the field of view stays.

    Images are interpolated linearly; where the grid gets coarser the kernel is stretched by the same factor,
    so that no voxel is skipped. An axis more than three times coarser than the next one is taken from the
    nearest slice (nnU-Net): between thick slices interpolation invents anatomy.

    In label maps every label is interpolated on its own and the largest share wins: unlike nearest neighbour
    this keeps outlines smooth when the grid gets finer and counts all voxels when it gets coarser, and unlike
    interpolated numbers it never makes a label between two others.

    Args:
        volume: (C, D, H, W); one channel of whole numbers if ``label``.
        spacing: millimetres along (D, H, W); None entries or "native" keep an axis.
        label: whether the volume is a label map.

    Returns:
        Float32 image or label map of the input's type; the volume itself where nothing changes.

    Raises:
        DataError: more voxels than fit into memory, as wrong spacings make them; it names no file.
    """
    old = volume.spacing
    wanted = old if isinstance(spacing, str) else [s or o for s, o in zip(spacing, old, strict=True)]
    new = tuple(o if abs(float(w) / o - 1) < 1e-3 else float(w) for w, o in zip(wanted, old, strict=True))
    if new == old:
        return volume
    counts = [max(1, round(side * b / a)) for side, b, a in zip(volume.shape, old, new, strict=True)]
    _check_size(volume, new, counts)
    coarse = _coarse_axis(old)
    matrices = []
    affine = volume.affine.copy()
    sides = zip(volume.shape, counts, old, new, strict=True)
    for axis, (side, count, before, after) in enumerate(sides):
        first = (side - 1) / 2 - (count - 1) / 2 * after / before
        nearest = axis == coarse and after <= before
        positions = first + np.arange(count, dtype=np.float64) * (after / before)
        matrices.append(_weights(side, positions, after / before, nearest=nearest))
        affine[:3, 3] += volume.affine[:3, axis] * first
        affine[:3, axis] *= after / before
    data = _majority(volume.data, matrices) if label else np.stack([_apply(c, matrices) for c in volume.data])
    return Volume(data, affine)


def _check_size(volume: Volume, spacing: Sequence[float], counts: Sequence[int]) -> None:
    needed, free = (
        _RESAMPLING_BYTES * len(volume.data) * float(np.prod(np.array(counts, float))),
        available_bytes(),
    )
    if max(counts) > MAX_SIDE or needed > free:
        raise DataError(
            f"From {_numbers(volume.shape)} voxels of {_numbers(volume.spacing)} mm it would become "
            f"{_numbers(counts)} voxels of {_numbers(spacing)} mm, which need {in_gib(needed)} of memory "
            f"where {in_gib(free)} are free; correct the spacing in its header, or choose a coarser one to "
            "resample to."
        )


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" if value % 1 else f"{value:.0f}" for value in values)


def _coarse_axis(spacing: FloatTriple) -> int | None:
    order = np.argsort(spacing)
    return int(order[2]) if spacing[order[2]] > ANISOTROPIC * spacing[order[1]] else None


def _weights(side: int, positions: NDArray[np.float64], ratio: float, *, nearest: bool) -> sparse.csr_array:
    """Interpolation along one axis as a matrix (len(positions), side) whose rows sum to one.

    Args:
        side: voxels of the input along the axis.
        positions: where the output's voxels lie, in voxels of the input.
        ratio: output spacing over input spacing.
        nearest: take the nearest voxel instead of interpolating linearly.
    """
    if nearest:
        taps = np.clip(np.floor(positions + 0.5), 0, side - 1)[:, None]
        weights = np.ones_like(taps)
    else:
        stretch = max(1.0, ratio)
        reach = int(np.ceil(stretch))
        taps = np.floor(positions)[:, None] + np.arange(-reach, reach + 1)
        distance = np.abs(taps - positions[:, None]) / stretch
        weights = np.maximum(0.0, 1.0 - distance)
        weights[(taps < 0) | (taps >= side)] = 0.0
        # Positions just outside the outermost centres see the border voxel only.
        lonely = np.abs(weights.sum(axis=1)) < 1e-9
        weights[lonely] = np.clip(positions[lonely], 0, side - 1).round()[:, None] == taps[lonely]
        weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(positions)), taps.shape[1])
    columns = np.clip(taps, 0, side - 1).astype(np.intp).ravel()
    matrix = sparse.csr_array(
        (weights.ravel(), (rows, columns)), shape=(len(positions), side), dtype=np.float32
    )
    matrix.eliminate_zeros()
    return matrix


def _apply(voxels: NDArray[Any], matrices: Sequence[sparse.csr_array]) -> NDArray[np.float32]:
    """Interpolate (D, H, W) voxels along each axis, the one that shrinks most first."""
    out = voxels.astype(np.float32, copy=False)
    for axis in sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1]):
        moved = np.ascontiguousarray(np.moveaxis(out, axis, 0))
        flat = matrices[axis] @ moved.reshape(len(moved), -1)
        out = np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def _majority(data: NDArray[Any], matrices: Sequence[sparse.csr_array]) -> NDArray[Any]:
    """Interpolate each label inside its bounding box; the background gets what is left of one."""
    labels = data[0]
    shape: Shape = (matrices[0].shape[0], matrices[1].shape[0], matrices[2].shape[0])
    winner = np.zeros(shape, dtype=data.dtype)
    best = np.zeros(shape, dtype=np.float32)
    total = np.zeros(shape, dtype=np.float32)
    values = np.unique(labels)
    codes = np.searchsorted(values, labels) + 1
    for value, box in zip(values, ndimage.find_objects(codes), strict=True):
        if value == 0:
            continue
        parts, region = [], []
        for matrix, side in zip(matrices, box, strict=True):
            part = matrix[:, side]
            rows = np.flatnonzero(part.sum(axis=1))
            start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
            parts.append(part[start:stop])
            region.append(slice(start, stop))
        if 0 in [part.shape[0] for part in parts]:
            continue
        share = _apply(labels[box] == value, parts)
        index = tuple(region)
        total[index] += share
        wins = share > best[index]
        winner[index][wins] = value
        best[index][wins] = share[wins]
    # Half a label and half background is labelled, whatever the rounding of the sum.
    winner[1.0 - total > best + 1e-5] = 0
    return winner[None]
