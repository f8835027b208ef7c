"""From a scan to a label map on its own grid: prepare it, slide a window over it, take the result back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from misfm.data.intensity import IntensityRule, Normalisation, fit
from misfm.data.label_scheme import LabelScheme
from misfm.data.preprocess import canonical, content_box, resample
from misfm.errors import DataError
from misfm.inference.largest_part import keep_largest_parts
from misfm.inference.sliding_window import num_passes, predict_logits
from misfm.settings import PositiveShape, Settings, Spacing
from misfm.volume import Affine, Box, Volume

Voxel = TypeVar("Voxel", bound=np.generic)

_MAX_VALUES = 2**24
"""Probabilities made at a time (64 MiB)."""


_PLAIN = 0.5
"""Size of a part that the clean-up removes, over that of the part that it keeps, from which it is told."""

MAX_CLASSES = 256
"""Label maps are written with one byte a voxel."""


class PredictionSpec(Settings):
    """What a network expects of a scan, as its weights describe it."""

    patch_size: PositiveShape
    """Voxels of a window along (D, H, W)."""
    spacing: Spacing | None = None
    """mm per voxel along (D, H, W); null keeps the scan's own."""
    rules: Annotated[tuple[IntensityRule, ...], Field(min_length=1)]
    """How voxels become network input, one rule for each channel of the scan."""
    whole_scans: bool = False
    """Whether all of a scan is labelled, rather than the box around the patient."""
    num_classes: Annotated[int, Field(gt=0, le=MAX_CLASSES)]
    """Outputs: classes, background included, or regions."""
    scheme: LabelScheme | None = None
    """What they are in a mask; null: classes of values 0, 1, 2, …"""

    @property
    def in_channels(self) -> int:
        """Channels of the scan."""
        return len(self.rules)


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of classes, or of regions, on a scan's own voxels, made a few slices at a time.

    Attributes:
        upright: the scan with its axes in canonical order, which is the grid of what follows.
        box: the part of it that was looked at; all outside is background.
        slabs: first slice, counted from that of the box, and probabilities (K, d, H, W) float32 of
            consecutive slabs, on the network's device, that make up the box. To be gone through once.
        regions: whether they are of regions, each with a probability of its own, without the background.
    """

    upright: Volume
    box: Box
    slabs: Iterator[tuple[int, Tensor]]
    regions: bool = False


class Watcher(Protocol):
    """Sees the probabilities that a label map is made of, while it is made."""

    def begin(self, probabilities: Probabilities) -> None:
        """Take note of the grid; slabs follow."""

    def add(self, start: int, slab: Tensor) -> None:
        """See a slab: its first slice, counted from that of the box, and its probabilities (K, d, H, W)."""


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
        self.scheme = spec.scheme or LabelScheme.numbered(spec.num_classes)
        self.overlap = overlap
        self.batch_size = batch_size
        self.mirror_axes = tuple(mirror_axes)
        self.largest_part = tuple(largest_part)

    def predict(
        self,
        volume: Volume,
        *,
        watchers: Sequence[Watcher] = (),
        progress: Callable[[float], None] | None = None,
        notes: list[str] | None = None,
    ) -> Volume:
        """Label a scan of any orientation and spacing; what lies outside the patient's box is background.

        Args:
            volume: (C, D, H, W), voxels as in the file.
            watchers: see what the label map is made of, before the clean-up.
            progress: called with the share of the windows that are done.
            notes: gets what there is to note about the label map, a sentence each.

        Returns:
            Label map (1, D, H, W) on the scan's own grid, with exactly its affine; uint8, or uint16 where a
            label has a value above 255.

        Raises:
            DataError: another number of channels than the network takes.
        """
        probabilities = self.probabilities(volume, progress=progress)
        for watcher in watchers:
            watcher.begin(probabilities)
        labels = np.zeros(probabilities.upright.shape, self.scheme.dtype)
        inside = labels[probabilities.box.slices]
        for start, slab in probabilities.slabs:
            inside[start : start + slab.shape[1]] = self.scheme.mask(self.scheme.decide(slab))
            for watcher in watchers:
                watcher.add(start, slab)
        label_map = reorient(labels, probabilities.upright.affine, volume.affine)
        lost: dict[int, float] = {}
        keep_largest_parts(label_map, self.largest_part, self.scheme, lost=lost)
        if notes is not None:
            notes += [
                f"of '{self.scheme.names.get(label, label)}' a part was removed that has {share:.0%} of the "
                "size of the part that was kept: in all label maps of the training it is one piece."
                for label, share in lost.items()
                if share >= _PLAIN
            ]
        return volume.with_data(label_map[None])

    def probabilities(
        self, volume: Volume, *, progress: Callable[[float], None] | None = None
    ) -> Probabilities:
        """Return the probability of each class or region, in memory bounded by one row of windows.

        Args:
            volume: as for :meth:`predict`.
            progress: likewise.

        Raises:
            DataError: another number of channels than the network takes.
        """
        if len(volume.data) != self.spec.in_channels:
            raise DataError(
                f"The scan has {len(volume.data)} channel(s) and the network takes {self.spec.in_channels}; "
                "give the images it was trained on."
            )
        upright = canonical(volume)
        # Of the whole scan, as at ingest: how a scan was cropped must not change its intensities.
        channels = zip(self.spec.rules, upright.data, strict=True)
        normalisations = [fit(rule, Volume(channel[None], upright.affine)) for rule, channel in channels]
        whole = Box((0, 0, 0), upright.shape)
        kinds = [rule.kind for rule in self.spec.rules]
        box = whole if self.spec.whole_scans else content_box(upright, kinds)
        body = upright.crop(box)
        image = resample(body, self.spec.spacing or "native")
        network = _Normalised(self.network, normalisations)
        how: dict[str, Any] = {
            "overlap": self.overlap,
            "batch_size": self.batch_size,
            "mirror_axes": self.mirror_axes,
        }
        if progress is not None:
            network.register_forward_hook(
                _Counter(num_passes(image.shape, self.spec.patch_size, **how), progress)
            )
        logits = predict_logits(network, _as_tensor(image.data), self.spec.patch_size, **how)
        activate = partial(self.scheme.activate, dim=0)
        if image is body:
            slabs = _activated(logits, activate)
        else:
            slabs = _activated_between(logits, activate, _lines(body, image))
        return Probabilities(upright, box, slabs, self.scheme.has_regions)


class _Counter:
    """Tells after each pass of a network which share of them is done."""

    def __init__(self, total: int, progress: Callable[[float], None]) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, *_: object) -> None:
        self.done += 1
        self.progress(min(1.0, self.done / self.total))


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


def _activated(
    slabs: Iterable[tuple[int, Tensor]], activate: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Turn logits into probabilities, a few slices at a time."""
    for start, logits in slabs:
        step = max(1, _MAX_VALUES // logits[:, 0].numel())
        for first in range(0, logits.shape[1], step):
            yield start + first, activate(logits[:, first : first + step])


def _activated_between(
    slabs: Iterable[tuple[int, Tensor]], activate: Callable[[Tensor], Tensor], lines: Sequence[_Line]
) -> Iterator[tuple[int, Tensor]]:
    """Interpolate probabilities to another grid, a few slices at a time.

    A slice is made as soon as both of its neighbours are there, so a slab's last slice is kept for the next.
    """
    along_d, along_h, along_w = lines
    done, kept = 0, None
    for start, logits in slabs:
        slab = activate(logits)
        if kept is not None:
            slab, start = torch.cat([kept, slab], dim=1), start - 1
        kept = slab[:, -1:].clone()
        ready = int((along_d.upper < start + slab.shape[1]).sum())
        step = max(1, _MAX_VALUES // (len(slab) * len(along_h.share) * len(along_w.share)))
        for first in range(done, ready, step):
            slices = along_d.of(first, min(first + step, ready), start).interpolate(slab, 1)
            yield first, along_w.interpolate(along_h.interpolate(slices, 2), 3)
        done = ready


def _as_tensor(voxels: NDArray[Any]) -> Tensor:
    """Return voxels as a tensor, without a copy where torch can compute with their type."""
    small = voxels.dtype in (np.int16, np.uint8, np.float32)
    return torch.from_numpy(voxels if small else voxels.astype(np.float32))


def reorient(voxels: NDArray[Voxel], affine: Affine, target: Affine) -> NDArray[Voxel]:
    """Permute and flip (..., D, H, W) from the grid of ``affine`` to that of ``target``, else the same."""
    columns = np.linalg.inv(affine[:3, :3]) @ target[:3, :3]
    order = np.abs(columns).argmax(axis=0)
    first = voxels.ndim - 3
    backwards = tuple(first + axis for axis, source in enumerate(order) if columns[source, axis] < 0)
    return np.ascontiguousarray(np.flip(voxels.transpose(*range(first), *(first + order)), backwards))
