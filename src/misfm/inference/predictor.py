"""From a scan to a label map on its own grid: prepare it, slide a window over it, take the result back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from misfm.data.intensity import IntensityRule, Normalisation, fit
from misfm.data.label_scheme import LabelScheme
from misfm.data.preprocess import canonical, content_box, resample
from misfm.errors import DataError
from misfm.inference.grid import Line, activated, activated_between, lines_between, reorient
from misfm.inference.largest_part import keep_largest_parts
from misfm.inference.passes import Batching, Passes
from misfm.inference.precision import Computing, dtype_of
from misfm.inference.sliding_window import blended_logits
from misfm.settings import PositiveShape, Settings, Spacing
from misfm.volume import Box, Volume

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


@dataclass(frozen=True)
class Prepared:
    """A scan that is ready for the network.

    Attributes:
        scan: as read.
        upright: the scan with its axes in canonical order.
        box: the part of it that is looked at.
        image: (C, D, H, W), that part with the spacing of the network's input, not normalised.
        normalisations: of the channels.
        lines: where the voxels of the box lie on the image; None where they are the image's own.
    """

    scan: Volume
    upright: Volume
    box: Box
    image: Tensor
    normalisations: Sequence[Normalisation]
    lines: Sequence[Line] | None

    def normalise(self, x: Tensor) -> Tensor:
        """Return voxels (B, C, ...) as the network wants them: window by window, never the volume."""
        channels = zip(self.normalisations, x.unbind(1), strict=True)
        return torch.stack([normalisation.apply(channel) for normalisation, channel in channels], dim=1)


class Predictor:
    """A network with all it takes to label scans.

    :meth:`predict` does so in three parts that need not be done in one thread: :meth:`prepare` and
    :meth:`finish` use neither the network nor its device, :meth:`label` does.

    Args:
        network: (B, C, D, H, W) to logits (B, K, D, H, W), or a list of them, finest first. It is put into
            eval mode; prediction runs on the device where its parameters are.
        spec: what it expects.
        overlap: share of a window that its neighbour repeats, [0, 1).
        mirror_axes: spatial axes (0, 1, 2) to average mirrored predictions over.
        largest_part: labels of which the largest connected part alone is kept.
        computing: how the network is computed.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: PredictionSpec,
        *,
        overlap: float = 0.5,
        mirror_axes: Sequence[int] = (),
        largest_part: Sequence[int] = (),
        computing: Computing | None = None,
    ) -> None:
        computing = computing or Computing()
        self.network = network.eval()
        self.spec = spec
        self.scheme = spec.scheme or LabelScheme.numbered(spec.num_classes)
        self.overlap = overlap
        self.batching = Batching(computing.batch_size)
        self.reuse = computing.reuse
        self.mirror_axes = tuple(mirror_axes)
        self.largest_part = tuple(largest_part)
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        self.dtype = dtype_of(computing.precision, device)

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
        prepared = self.prepare(volume)
        return self.finish(prepared, self.label(prepared, watchers=watchers, progress=progress), notes=notes)

    def prepare(self, volume: Volume) -> Prepared:
        """Bring a scan (C, D, H, W) to the grid of the network's input.

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
        lines = None if image is body else lines_between(body, image)
        return Prepared(volume, upright, box, _as_tensor(image.data), normalisations, lines)

    def label(
        self,
        prepared: Prepared,
        *,
        watchers: Sequence[Watcher] = (),
        progress: Callable[[float], None] | None = None,
    ) -> NDArray[Any]:
        """Return the labels (D, H, W) of a scan with its axes in canonical order; args as of `predict`."""
        probabilities = self._probabilities(prepared, progress)
        for watcher in watchers:
            watcher.begin(probabilities)
        labels = np.zeros(prepared.upright.shape, self.scheme.dtype)
        inside = labels[prepared.box.slices]
        for start, slab in probabilities.slabs:
            inside[start : start + slab.shape[1]] = self.scheme.mask(self.scheme.decide(slab))
            for watcher in watchers:
                watcher.add(start, slab)
        return labels

    def finish(self, prepared: Prepared, labels: NDArray[Any], *, notes: list[str] | None = None) -> Volume:
        """Return the label map on the grid of the scan, cleaned up; args and result as of `predict`."""
        label_map = reorient(labels, prepared.upright.affine, prepared.scan.affine)
        lost: dict[int, float] = {}
        keep_largest_parts(label_map, self.largest_part, self.scheme, lost=lost)
        if notes is not None:
            notes += [
                f"of '{self.scheme.names.get(label, label)}' a part was removed that has {share:.0%} of the "
                "size of the part that was kept: in all label maps of the training it is one piece."
                for label, share in lost.items()
                if share >= _PLAIN
            ]
        return prepared.scan.with_data(label_map[None])

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
        return self._probabilities(self.prepare(volume), progress)

    def _probabilities(self, prepared: Prepared, progress: Callable[[float], None] | None) -> Probabilities:
        passes = Passes(
            self.network,
            prepare=prepared.normalise,
            batching=self.batching,
            mirror_axes=self.mirror_axes,
            dtype=self.dtype,
            reuse=self.reuse,
        )
        size, overlap = self.spec.patch_size, self.overlap
        logits = blended_logits(passes, prepared.image, size, overlap=overlap, progress=progress)
        activate = partial(self.scheme.activate, dim=0)
        lines = prepared.lines
        slabs = activated(logits, activate) if lines is None else activated_between(logits, activate, lines)
        return Probabilities(prepared.upright, prepared.box, slabs, self.scheme.has_regions)


def _as_tensor(voxels: NDArray[Any]) -> Tensor:
    """Return voxels as a tensor, without a copy where torch can compute with their type."""
    small = voxels.dtype in (np.int16, np.uint8, np.float32)
    return torch.from_numpy(voxels if small else voxels.astype(np.float32))
