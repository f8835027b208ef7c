"""From a scan to a label map on its own grid: prepare it, slide a window over it, take the result back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from misfm.data.intensity import IntensityRule, Normalisation, fit
from misfm.data.preprocess import canonical, content_box, resample
from misfm.errors import DataError
from misfm.inference.largest_part import keep_largest_parts
from misfm.inference.sliding_window import predict_logits
from misfm.settings import PositiveShape, Settings, Spacing
from misfm.volume import Affine, Volume

_MAX_VALUES = 2**24
"""Probabilities interpolated at a time (64 MiB)."""


MAX_CLASSES = 256
"""Label maps are written with one byte a voxel."""


class PredictionSpec(Settings):
    """What a network expects of a scan, as its weights describe it."""

    patch_size: PositiveShape
    """Voxels of a window along (D, H, W)."""
    spacing: Spacing | None = None
    """mm per voxel along (D, H, W); null keeps the scan's own."""
    intensity: IntensityRule
    """How voxels become network input; the same for all channels."""
    in_channels: Annotated[int, Field(gt=0)] = 1
    """Channels of the scan."""
    num_classes: Annotated[int, Field(gt=1, le=MAX_CLASSES)]
    """Classes, background included."""


class Predictor:
    """A network with all it takes to label scans.

    Args:
        network: (B, C, D, H, W) to logits (B, K, D, H, W), or a list of them, finest first. It is put into
            eval mode; prediction runs on the device where its parameters are.
        spec: what it expects.
        overlap: share of a window that its neighbour repeats, [0, 1).
        batch_size: windows in one pass.
        mirror_axes: spatial axes (0, 1, 2) to average mirrored predictions over.
        largest_part: labels of which the largest connected part alone is kept.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: PredictionSpec,
        *,
        overlap: float = 0.5,
        batch_size: int = 1,
        mirror_axes: Sequence[int] = (),
        largest_part: Sequence[int] = (),
    ) -> None:
        self.network = network.eval()
        self.spec = spec
        self.overlap = overlap
        self.batch_size = batch_size
        self.mirror_axes = tuple(mirror_axes)
        self.largest_part = tuple(largest_part)

    def predict(self, volume: Volume) -> Volume:
        """Label a scan of any orientation and spacing; what lies outside the patient's box is background.

        Args:
            volume: (C, D, H, W), voxels as in the file.

        Returns:
            Label map (1, D, H, W) uint8 on the scan's own grid, with exactly its affine.

        Raises:
            DataError: another number of channels than the network takes.
        """
        if len(volume.data) != self.spec.in_channels:
            raise DataError(
                f"The scan has {len(volume.data)} channel(s) and the network takes {self.spec.in_channels}; "
                "give the images it was trained on."
            )
        label_map = self._label(volume)
        keep_largest_parts(label_map, self.largest_part)
        return volume.with_data(label_map[None])

    def _label(self, volume: Volume) -> NDArray[np.uint8]:
        """Label a scan; returns (D, H, W) on its own grid, before the clean-up."""
        upright = canonical(volume)
        # Of the whole scan, as at ingest: how a scan was cropped must not change its intensities.
        normalisations = [fit(self.spec.intensity, Volume(c[None], upright.affine)) for c in upright.data]
        box = content_box(upright, self.spec.intensity.kind)
        body = upright.crop(box)
        image = resample(body, self.spec.spacing or "native")
        slabs = predict_logits(
            _Normalised(self.network, normalisations),
            _as_tensor(image.data),
            self.spec.patch_size,
            overlap=self.overlap,
            batch_size=self.batch_size,
            mirror_axes=self.mirror_axes,
        )
        labels = np.zeros(upright.shape, np.uint8)
        inside = labels[box.slices]
        parts = _argmax(slabs) if image is body else _argmax_between(slabs, _lines(body, image))
        for start, part in parts:
            inside[start : start + len(part)] = part
        return _reorient(labels, upright.affine, volume.affine)


class _Normalised(nn.Module):
    """A network that takes voxels as stored: windows are normalised one batch at a time, never the volume."""

    def __init__(self, network: nn.Module, normalisations: Sequence[Normalisation]) -> None:
        super().__init__()
        self.network = network
        self.normalisations = normalisations

    def forward(self, x: Tensor) -> Any:
        return self.network(
            torch.stack([n.apply(c) for n, c in zip(self.normalisations, x.unbind(1), strict=True)], dim=1)
        )


@dataclass(frozen=True)
class _Line:
    """Linear interpolation along an axis: each place lies between two voxels, sorted along the axis.

    Attributes:
        lower, upper: (N,) int64, neighbours of each place; equal where it lies at or beyond the border.
        share: (N,) float32, weight of the upper one.
    """

    lower: Tensor
    upper: Tensor
    share: Tensor

    def of(self, start: int, stop: int, first: int = 0) -> _Line:
        """Return the places ``start`` to ``stop``, with voxels counted from ``first``."""
        part = slice(start, stop)
        return _Line(self.lower[part] - first, self.upper[part] - first, self.share[part])

    def interpolate(self, x: Tensor, axis: int) -> Tensor:
        """Return ``x`` (K, D, H, W) at the places along an axis."""
        share = self.share.to(x.device).view(-1, *[1] * (x.ndim - 1 - axis))
        lower = x.index_select(axis, self.lower.to(x.device))
        return lower.lerp_(x.index_select(axis, self.upper.to(x.device)), share)


def _lines(body: Volume, image: Volume) -> list[_Line]:
    """Where the voxels of ``body`` lie on the grid of ``image``, which has the same axes."""
    to_image = np.linalg.inv(image.affine) @ body.affine
    lines = []
    for axis, (count, side) in enumerate(zip(body.shape, image.shape, strict=True)):
        places = torch.arange(count, dtype=torch.float64) * to_image[axis, axis] + to_image[axis, 3]
        places = places.clamp(0, side - 1)
        lower = places.floor().long()
        lines.append(_Line(lower, (lower + 1).clamp(max=side - 1), (places - lower).float()))
    return lines


def _argmax(slabs: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start, logits in slabs:
        # On the CPU several times faster than argmax.
        yield start, logits.max(dim=0).indices.to(torch.uint8).cpu().numpy()


def _argmax_between(
    slabs: Iterable[tuple[int, Tensor]], lines: Sequence[_Line]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Interpolate class probabilities to another grid and yield labels, a few slices at a time.

    A slice is made as soon as both of its neighbours are there, so a slab's last slice is kept for the next.
    """
    along_d, along_h, along_w = lines
    done, kept = 0, None
    for start, logits in slabs:
        slab = logits.softmax(dim=0)
        if kept is not None:
            slab, start = torch.cat([kept, slab], dim=1), start - 1
        kept = slab[:, -1:].clone()
        ready = int((along_d.upper < start + slab.shape[1]).sum())
        step = max(1, _MAX_VALUES // (len(slab) * len(along_h.share) * len(along_w.share)))
        for first in range(done, ready, step):
            slices = along_d.of(first, min(first + step, ready), start).interpolate(slab, 1)
            yield from _argmax([(first, along_w.interpolate(along_h.interpolate(slices, 2), 3))])
        done = ready


def _as_tensor(voxels: NDArray[Any]) -> Tensor:
    """Return voxels as a tensor, without a copy where torch can compute with their type."""
    small = voxels.dtype in (np.int16, np.uint8, np.float32)
    return torch.from_numpy(voxels if small else voxels.astype(np.float32))


def _reorient(labels: NDArray[np.uint8], affine: Affine, target: Affine) -> NDArray[np.uint8]:
    """Permute and flip (D, H, W) from the grid of ``affine`` to that of ``target``, the same otherwise."""
    columns = np.linalg.inv(affine[:3, :3]) @ target[:3, :3]
    order = np.abs(columns).argmax(axis=0)
    backwards = tuple(axis for axis, source in enumerate(order) if columns[source, axis] < 0)
    return np.ascontiguousarray(np.flip(labels.transpose(order), backwards))
