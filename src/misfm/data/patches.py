"""Patches for training: batch ``i`` is a pure function of the seed and ``i``.

Patches are centred on content (body, not air) or on labelled voxels, and lie within the volume wherever it is
large enough; elsewhere they reach over its border and are padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import Dataset

from misfm.batches import RawPatches
from misfm.data.intensity import normalise
from misfm.data.label_scheme import IGNORED_CLASS, LabelScheme
from misfm.data.record import Record
from misfm.data.store import Store
from misfm.seeding import generator_for
from misfm.volume import Box, Shape, triple

LabelledBatch = tuple[Tensor, Tensor, *tuple[Tensor, ...]]
"""See :class:`LabelledPatches`."""


@dataclass(frozen=True)
class UnlabelledPatches(Dataset[RawPatches]):
    """Batches for pretraining: ``self[i]`` is batch ``i``, on the CPU.

    It has label maps where ``labelled``, and says what is hidden where any of the volumes was anonymised.

    Attributes:
        store: where the volumes are.
        records: the volumes to draw from.
        patch_size: voxels along (D, H, W).
        num_patches: N, patches of one volume in a sample.
        batch_size: B; the volumes of a batch differ as long as there are enough.
        seed: of the run.
        labelled: give label maps, too.
        margin: voxels of these on each side that may lie beyond the volume.
    """

    store: Store
    records: Sequence[Record]
    patch_size: Shape
    num_patches: int
    batch_size: int
    seed: int
    labelled: bool = False
    margin: Shape = (0, 0, 0)

    @cached_property
    def anonymised(self) -> bool:
        """Whether any of the volumes was."""
        return any(record.anonymised for record in self.records)

    def __getitem__(self, index: int) -> RawPatches:
        generator = generator_for(self.seed, "patches", index)
        patches, valid, starts, spacings, labels, hidden = [], [], [], [], [], []
        inner = triple(side - 2 * more for side, more in zip(self.patch_size, self.margin, strict=True))
        for record in draw_records(self.records, self.batch_size, generator):
            for _ in range(self.num_patches):
                box = grow(draw_box(self.store.anchors(record), record.shape, inner, generator), self.margin)
                voxels, inside = self.store.read_patch(record, box)
                patches.append(torch.from_numpy(normalise(record.normalisation, voxels)))
                valid.append(torch.tensor([inside.start, inside.stop]))
                starts.append(torch.tensor(box.start, dtype=torch.float32))
                spacings.append(torch.tensor(record.spacing, dtype=torch.float32))
                if self.labelled:
                    classes, _ = self.store.read_label_patch(record, box)
                    labels.append(torch.from_numpy(classes[0].astype(np.int64)))
                if self.anonymised:
                    hidden.append(torch.from_numpy(self.store.read_anonymised_patch(record, box)))

        def batched(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).reshape(self.batch_size, self.num_patches, *rows[0].shape)

        spacing = batched(spacings)
        return RawPatches(
            batched(patches),
            batched(valid),
            batched(starts) * spacing,
            spacing,
            labels=batched(labels) if self.labelled else None,
            hidden=batched(hidden) if self.anonymised else None,
        )


@dataclass(frozen=True)
class MixedPatches(Dataset[RawPatches]):
    """Batches of scans followed by generated volumes with label maps, as :class:`UnlabelledPatches`.

    Attributes:
        scans: without label maps; theirs are :data:`IGNORED_CLASS` all over.
        generated: with label maps; patches of the same size and number.
    """

    scans: UnlabelledPatches
    generated: UnlabelledPatches

    @property
    def seed(self) -> int:
        """That of the run."""
        return self.scans.seed

    def __getitem__(self, index: int) -> RawPatches:
        scans, generated = self.scans[index], self.generated[index]
        labels, hidden = generated.labels, scans.hidden
        assert labels is not None
        unknown = torch.full((len(scans.patches), *labels.shape[1:]), IGNORED_CLASS)
        if hidden is not None:
            hidden = torch.cat([hidden, torch.zeros(labels.shape, dtype=torch.bool)])
        return RawPatches(
            torch.cat([scans.patches, generated.patches]),
            torch.cat([scans.valid, generated.valid]),
            torch.cat([scans.origin, generated.origin]),
            torch.cat([scans.spacing, generated.spacing]),
            labels=torch.cat([unknown, labels]),
            hidden=hidden,
        )


@dataclass(frozen=True)
class JoinedPatches(Dataset[RawPatches]):
    """Batches that are put together of two others, both with label maps and without hidden voxels."""

    first: UnlabelledPatches
    second: UnlabelledPatches

    @property
    def seed(self) -> int:
        """That of the run."""
        return self.first.seed

    def __getitem__(self, index: int) -> RawPatches:
        pairs = zip(self.first[index][:5], self.second[index][:5], strict=True)
        return RawPatches(*(torch.cat([one, other]) for one, other in pairs))  # type: ignore[list-item]


@dataclass(frozen=True)
class LabelledPatches(Dataset[LabelledBatch]):
    """Batches for fine-tuning.

    ``self[i]`` is ``(image, label, …)``: (B, C, D, H, W) float32 and (B, D, H, W) int64, the class of each
    voxel, in which those that were not annotated are :data:`IGNORED_CLASS`. If some label was not annotated
    in some case of the batch follows (B, K) bool, which of the network's outputs were annotated in each.

    Attributes:
        store: where the labelled volumes are.
        records: the cases to draw from.
        patch_size: voxels along (D, H, W) the network will see; these lie within the volume.
        margin: voxels read beyond them on each side, so that rotation finds voxels at the corners.
        batch_size: B.
        seed: of the run.
        labelled_share: share of patches centred on a labelled voxel. The label is drawn first, uniformly from
            those of the case, so that a small organ is seen as often as a large one.
        scheme: what the values in the label maps mean.
        annotated: K bools for each case, by its name, in which not all labels were annotated.
    """

    store: Store
    records: Sequence[Record]
    patch_size: Shape
    margin: Shape
    batch_size: int
    seed: int
    scheme: LabelScheme
    labelled_share: float = 0.6
    annotated: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    def __getitem__(self, index: int) -> LabelledBatch:
        generator = generator_for(self.seed, "patches", index)
        images, labels = [], []
        records = draw_records(self.records, self.batch_size, generator)
        for record in records:
            inner = draw_box(self._anchors(record, generator), record.shape, self.patch_size, generator)
            box = grow(inner, self.margin)
            voxels, _ = self.store.read_patch(record, box)
            values, _ = self.store.read_label_patch(record, box)
            label = self.scheme.classes(torch.from_numpy(values[0].astype(np.int64)))
            images.append(torch.from_numpy(normalise(record.normalisation, voxels)))
            labels.append(label)
        batch = torch.stack(images), torch.stack(labels)
        rows = [self.annotated.get(record.case, ()) for record in records]
        if all(map(all, rows)):
            return batch
        number = max(map(len, rows))
        return (*batch, torch.tensor([row or (True,) * number for row in rows]))

    def _anchors(self, record: Record, generator: Generator) -> NDArray[np.int16]:
        by_label = self.store.label_anchors(record)
        present = [label for label in sorted(by_label) if label not in (0, self.scheme.ignore)]
        if present and float(torch.rand((), generator=generator)) < self.labelled_share:
            return by_label[present[int(torch.randint(len(present), (), generator=generator))]]
        return self.store.anchors(record)


def padding_notice(records: Sequence[Record], patch_size: Shape) -> str | None:
    """Say in a sentence which volumes are smaller than what is read of them for a patch; None where none is.

    Args:
        records: the volumes.
        patch_size: voxels along (D, H, W) that are read.
    """
    small = [
        record
        for record in records
        if any(side < wanted for side, wanted in zip(record.shape, patch_size, strict=True))
    ]
    if not small:
        return None
    first = small[0]
    return (
        f"{len(small)} of {len(records)} volumes are smaller than the {patch_size} voxels read for a patch, "
        f"such as {first.case} with {first.shape}: what is read of them is padded."
    )


def draw_records(records: Sequence[Record], count: int, generator: Generator) -> list[Record]:
    """Draw ``count`` records, all different as long as there are enough."""
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(records), generator=generator).tolist()
    return [records[i] for i in order[:count]]


def draw_box(anchors: NDArray[np.int16], shape: Shape, size: Shape, generator: Generator) -> Box:
    """Draw a box around one of the anchors (N, 3); see the module's docstring for how it meets the border."""
    centre = anchors[int(torch.randint(len(anchors), (), generator=generator))]
    starts = [
        fit_start(int(middle) - side // 2, side, length)
        for middle, side, length in zip(centre, size, shape, strict=True)
    ]
    return Box(triple(starts), size)


def grow(box: Box, margin: Shape) -> Box:
    """Add ``margin`` voxels on each side of a box."""
    d, h, w = (start - more for start, more in zip(box.start, margin, strict=True))
    depth, height, width = (side + 2 * more for side, more in zip(box.size, margin, strict=True))
    return Box((d, h, w), (depth, height, width))


def fit_start(start: int, side: int, length: int) -> int:
    """Move a box along an axis into the volume, or centre it on a volume that is shorter than the box."""
    if side >= length:
        return -((side - length) // 2)
    return min(max(start, 0), length - side)
