"""Patches for training: sample ``s`` of batch ``i`` is a pure function of the seed, ``i`` and ``s``.

Which volumes are in a batch is drawn once for all of it, where in them and what else separately for each
sample: of several processes, each reads its own samples of a batch and no others.

Patches are centred on content (body, not air) or on labelled voxels, and lie within the volume wherever it is
large enough; elsewhere they reach over its border and are padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import Dataset

from misfm.batches import WHOLE, RawPatches, Share
from misfm.data.intensity import normalise
from misfm.data.label_scheme import IGNORED_CLASS, LabelScheme
from misfm.data.record import Record
from misfm.data.records import Records
from misfm.data.store import Store
from misfm.seeding import Draws, draw_different
from misfm.volume import Box, Shape, triple

LabelledBatch = tuple[Tensor, Tensor, *tuple[Tensor, ...]]
"""See :class:`LabelledPatches`."""

ChooseRecords = Callable[[int, int, Generator], Sequence[int]]
"""Which of ``number`` records the ``count`` samples of a batch are: ``choose(number, count, generator)``."""


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
        choose: draws the records of a batch.
    """

    store: Store
    records: Sequence[Record]
    patch_size: Shape
    num_patches: int
    batch_size: int
    seed: int
    labelled: bool = False
    margin: Shape = (0, 0, 0)
    choose: ChooseRecords = draw_different

    @cached_property
    def anonymised(self) -> bool:
        """Whether any of the volumes was."""
        return bool(Records.of(self.records).anonymised.any())

    @property
    def sizes(self) -> tuple[int, ...]:
        """See :class:`misfm.batches.Shareable`."""
        return (self.batch_size,)

    def __getitem__(self, index: int) -> RawPatches:
        return self.share(index, WHOLE)

    def share(self, index: int, share: Share) -> RawPatches:
        """See :class:`misfm.batches.Shareable`."""
        return self.rows(index, share.of(self.batch_size))

    def rows(self, index: int, rows: slice) -> RawPatches:
        """Return some samples, at least one, of a batch."""
        draws = Draws((self.seed, "patches", index))
        records = self.choose(len(self.records), self.batch_size, draws.of_batch())
        patches, valid, starts, spacings, labels, hidden = [], [], [], [], [], []
        inner = triple(side - 2 * more for side, more in zip(self.patch_size, self.margin, strict=True))
        samples = range(self.batch_size)[rows]
        for sample in samples:
            record, generator = self.records[records[sample]], draws.of_sample(sample)
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

        def batched(each: list[Tensor]) -> Tensor:
            return torch.stack(each).reshape(len(samples), self.num_patches, *each[0].shape)

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

    @property
    def sizes(self) -> tuple[int, ...]:
        """See :class:`misfm.batches.Shareable`."""
        return (self.scans.batch_size + self.generated.batch_size,)

    def __getitem__(self, index: int) -> RawPatches:
        return self.share(index, WHOLE)

    def share(self, index: int, share: Share) -> RawPatches:
        """See :class:`misfm.batches.Shareable`."""
        parts = rows_of_both(self.scans, self.generated, index, share)
        completed: list[RawPatches] = []
        for part in parts:
            masks = torch.zeros_like(part.patches[:, :, 0], dtype=torch.bool)
            labels = torch.full(masks.shape, IGNORED_CLASS) if part.labels is None else part.labels
            hidden = (part.hidden if part.hidden is not None else masks) if self.scans.anonymised else None
            completed.append(part._replace(labels=labels, hidden=hidden))
        return join_patches(completed)


@dataclass(frozen=True)
class JoinedPatches(Dataset[RawPatches]):
    """Batches that are put together of two others, both with label maps and without hidden voxels."""

    first: UnlabelledPatches
    second: UnlabelledPatches

    @property
    def seed(self) -> int:
        """That of the run."""
        return self.first.seed

    @property
    def sizes(self) -> tuple[int, ...]:
        """See :class:`misfm.batches.Shareable`."""
        return (self.first.batch_size + self.second.batch_size,)

    def __getitem__(self, index: int) -> RawPatches:
        return self.share(index, WHOLE)

    def share(self, index: int, share: Share) -> RawPatches:
        """See :class:`misfm.batches.Shareable`."""
        parts = rows_of_both(self.first, self.second, index, share)
        return join_patches([part._replace(hidden=None) for part in parts])


def rows_of_both(
    first: UnlabelledPatches, second: UnlabelledPatches, index: int, share: Share
) -> list[RawPatches]:
    """Return a share of a batch in which the samples of one source follow those of another, by source."""
    start, stop, _ = share.of(first.batch_size + second.batch_size).indices(2**31)
    middle = first.batch_size
    parts = (first, slice(start, min(stop, middle))), (second, slice(max(start - middle, 0), stop - middle))
    return [source.rows(index, rows) for source, rows in parts if rows.start < rows.stop]


def join_patches(parts: Sequence[RawPatches]) -> RawPatches:
    """Put the samples of all parts, which have the same fields, into one batch."""
    columns = zip(*parts, strict=True)
    return RawPatches._make(None if each[0] is None else torch.cat(each) for each in columns)


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
        choose: draws the records of a batch.
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
    choose: ChooseRecords = draw_different

    @property
    def sizes(self) -> tuple[int, ...]:
        """See :class:`misfm.batches.Shareable`."""
        return (self.batch_size,)

    def __getitem__(self, index: int) -> LabelledBatch:
        return self.share(index, WHOLE)

    def share(self, index: int, share: Share) -> LabelledBatch:
        """See :class:`misfm.batches.Shareable`."""
        draws = Draws((self.seed, "patches", index))
        chosen = self.choose(len(self.records), self.batch_size, draws.of_batch())
        records = [self.records[number] for number in chosen]
        own = range(self.batch_size)[share.of(self.batch_size)]
        images, labels = [], []
        for sample in own:
            record, generator = records[sample], draws.of_sample(sample)
            inner = draw_box(self._anchors(record, generator), record.shape, self.patch_size, generator)
            box = grow(inner, self.margin)
            voxels, _ = self.store.read_patch(record, box)
            values, _ = self.store.read_label_patch(record, box)
            label = self.scheme.classes(torch.from_numpy(values[0].astype(np.int64)))
            images.append(torch.from_numpy(normalise(record.normalisation, voxels)))
            labels.append(label)
        batch = torch.stack(images), torch.stack(labels)
        # Of the whole batch, so that all of its shares are of one form.
        annotated = [self.annotated.get(record.case, ()) for record in records]
        if all(map(all, annotated)):
            return batch
        number = max(map(len, annotated))
        return (*batch, torch.tensor([annotated[sample] or (True,) * number for sample in own]))

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
    small = (Records.of(records).shapes < patch_size).any(axis=1)
    if not small.any():
        return None
    first = records[int(np.argmax(small))]
    return (
        f"{small.sum()} of {len(records)} volumes are smaller than the {patch_size} voxels read for a patch, "
        f"such as {first.case} with {first.shape}: what is read of them is padded."
    )


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
