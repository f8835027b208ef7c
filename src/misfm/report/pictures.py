"""Slices through volumes as PNG images: segmentations over their scan, and what Volume Fusion makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from misfm.report.figures import INK, plain_text, to_png
from misfm.volume import FloatTriple, Volume, bounding_box

REFERENCE_COLOUR, PREDICTION_COLOUR = "#3ec1f3", "#ffa51f"
_MARGIN_MM = 20.0
_BLACK_WHITE_PERCENTILES = (1.0, 99.5)

Voxels = NDArray[Any]


@dataclass(frozen=True)
class FusionSample:
    """One Volume Fusion sample, arrays of shape (D, H, W).

    Attributes:
        foreground: I_f.
        background: I_b.
        fused: the network's input.
        levels: the target, 0 .. K.
        predicted: the network's levels, if there is a network yet.
    """

    foreground: Voxels
    background: Voxels
    fused: Voxels
    levels: Voxels
    predicted: Voxels | None = None


def overlay(image: Volume, reference: Volume, predictions: Mapping[str, Volume]) -> bytes:
    """Draw outlines over an axial, a coronal and a sagittal slice, one row for each prediction.

    Slices go where the reference has most labelled voxels and are cropped around them. Orientation is
    radiological: the patient's right is at the left of axial and coronal slices, anterior at the top of axial
    and at the left of sagittal ones, superior at the top.

    Args:
        image: (C, D, H, W); the first channel is shown.
        reference: label map (1, D, H, W) on the same grid.
        predictions: label maps on the same grid by the name of what made them; may be empty.

    Returns:
        A PNG image.
    """
    scan, spacing = to_display(image)
    truth, _ = to_display(reference)
    rows = {name: to_display(volume)[0] for name, volume in predictions.items()}
    centre = _busiest_slices(truth)
    window = np.percentile(scan, _BLACK_WHITE_PERCENTILES)
    labelled = np.logical_or.reduce([label_map > 0 for label_map in (truth, *rows.values())])
    box = _box_around(labelled, [_MARGIN_MM / side for side in spacing])

    figure = Figure(figsize=(7.2, 2.6 * max(len(rows), 1)), layout="constrained")
    grid = figure.subplots(max(len(rows), 1), 3, squeeze=False)
    for row, (name, predicted) in zip(grid, (rows or {"": np.zeros_like(truth)}).items(), strict=True):
        for axis, axes in enumerate(row):
            row_axis, column_axis = (a for a in range(3) if a != axis)
            cut = tuple(centre[a] if a == axis else box[a] for a in range(3))
            aspect = spacing[row_axis] / spacing[column_axis]
            axes.imshow(scan[cut], cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
            _outline(axes, truth[cut], REFERENCE_COLOUR, width=2.4)
            _outline(axes, predicted[cut], PREDICTION_COLOUR, width=1.2)
            _clean(axes)
        row[0].set_ylabel(plain_text(name), color=INK)
    _title(grid[0], ("axial", "coronal", "sagittal"))
    lines = {"reference": REFERENCE_COLOUR, "prediction": PREDICTION_COLOUR}
    handles = [Line2D([], [], color=c, label=n) for n, c in lines.items() if rows or n == "reference"]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return to_png(figure)


def fusion_strip(samples: Sequence[FusionSample], *, num_levels: int) -> bytes:
    """Draw the central slice of Volume Fusion samples: two sources, their fusion, and the levels to find.

    Args:
        samples: one row each.
        num_levels: K, the largest level.

    Returns:
        A PNG image.
    """
    titles = ["foreground", "background", "fused", "levels"]
    titles += ["predicted levels"] if any(s.predicted is not None for s in samples) else []
    figure = Figure(figsize=(1.75 * len(titles), 1.85 * len(samples)), layout="constrained")
    grid = figure.subplots(len(samples), len(titles), squeeze=False)
    for row, sample in zip(grid, samples, strict=True):
        images = (sample.foreground, sample.background, sample.fused)
        low, high = np.percentile(np.stack(images[:2]), _BLACK_WHITE_PERCENTILES)
        for axes, voxels in zip(row, images, strict=False):
            axes.imshow(_central(voxels), cmap="gray", vmin=low, vmax=high)
        for axes, levels in zip(row[3:], (sample.levels, sample.predicted), strict=False):
            if levels is not None:
                axes.imshow(_central(levels), cmap=_level_colours(num_levels), vmin=0, vmax=num_levels)
        for axes in row:
            _clean(axes)
    _title(grid[0], titles)
    return to_png(figure)


def to_display(volume: Volume) -> tuple[Voxels, FloatTriple]:
    """Turn the first channel so that its axes grow towards inferior, posterior and left.

    Returns:
        Voxels (I, P, L), and millimetres per voxel along these axes.
    """
    turned = volume.turned("IPL")
    return turned.data[0], turned.spacing


def _busiest_slices(labels: Voxels) -> list[int]:
    """The slice of each axis with the most labelled voxels; the middle one where there are none."""
    if not labels.any():
        return [side // 2 for side in labels.shape]
    return [int((labels > 0).sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


def _box_around(mask: Voxels, margin: Sequence[float]) -> tuple[slice, ...]:
    """The bounding box of a mask with a margin in voxels, or everything where the mask is empty."""
    box = bounding_box(mask)
    if box is None:
        return (slice(None),) * 3
    reach = [round(voxels) for voxels in margin]
    bounds = zip(box.start, box.stop, reach, strict=True)
    return tuple(slice(max(start - more, 0), stop + more) for start, stop, more in bounds)


def _outline(axes: Axes, labels: Voxels, colour: str, *, width: float) -> None:
    """Draw the borders of every label of a slice."""
    for label in np.unique(labels[labels > 0]):
        # Padding closes outlines that run along the edge of the slice, and makes 1-voxel slices drawable.
        mask = np.pad((labels == label).astype(float), 1)
        rows, columns = (np.arange(side) - 1 for side in mask.shape)
        axes.contour(columns, rows, mask, levels=[0.5], colors=[colour], linewidths=width)


def _clean(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(row: Sequence[Axes], titles: Sequence[str]) -> None:
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, color=INK, fontsize=9)


def _central(voxels: Voxels) -> Voxels:
    slices: Voxels = voxels[voxels.shape[0] // 2]
    return slices


def _level_colours(num_levels: int) -> ListedColormap:
    """Black for pure background, then from blue to yellow, even in lightness."""
    steps = colormaps["cividis"](np.linspace(0.15, 1, num_levels))
    return ListedColormap(np.vstack([[0, 0, 0, 1], steps]))
