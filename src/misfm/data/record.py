"""What a store keeps of one volume: its record, compressed voxels, and where patches may be centred."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import blosc2
import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import Checksum, checksum_of
from misfm.data.intensity import Kind, Normalisation, content_mask, patient_channel
from misfm.errors import DataError
from misfm.settings import Extended, Settings, Spacing
from misfm.volume import Affine, FloatTriple, Shape, Volume

MAX_ANCHORS = 4096
MAX_LABEL_ANCHORS = 1024

# Measured on CT and MR: patches of 64x128x128 touch few blocks, and both codec settings decode in 3-5 ms.
_CHUNK = (64, 128, 128)
_BLOCK = (16, 32, 32)

Row = tuple[float, float, float, float]


class IngestSettings(Extended):
    """How scans become volumes of a store; the same for all of its volumes."""

    newer: ClassVar[tuple[str, ...]] = ("channels",)

    spacing: Spacing | Literal["native"] = "native"
    """mm per voxel along (D, H, W), or "native" to keep every scan's own."""
    intensity: str = "auto"
    """auto, or a rule: ct, ct:LOW,HIGH (intensity window, HU), mr, pet, ...; ct/pet: one for each channel."""
    channels: Literal["apart", "together"] = "apart"
    """Whether each channel of a case is a volume of its own, or all of them are one."""


class Checks(Settings):
    """Checksums of what a store keeps of one volume; null where there is no such part."""

    image: Checksum
    """Of the file of the image."""
    label: Checksum | None
    """Of the file of the label map."""
    anonymised: Checksum | None
    """Of the file of the mask of what was removed."""
    anchors: Checksum
    """Of the places where patches may be centred."""
    label_anchors: Checksum
    """Of such places for each label."""


class Record(Extended):
    """One volume of a store."""

    newer: ClassVar[tuple[str, ...]] = ("kinds", "channel_names", "scans", "labels_apart")

    id: str
    """Hash of stored voxels, affine, settings and, where there are any, label map and case name, and the mask
    of what was removed."""
    case: str
    """Name of the case."""
    source: str
    """Path of the scan it came from."""
    channels: int
    """Number of channels."""
    shape: Shape
    """Voxels along (D, H, W) as stored."""
    spacing: FloatTriple
    """mm per voxel along (D, H, W) as stored."""
    rows: tuple[Row, Row, Row, Row]
    """The affine of the stored grid, row by row; see ``affine``."""
    kind: Kind
    """Of the first channel: ct, mr, pet, or how it is normalised."""
    kinds: tuple[Kind, ...] = ()
    """Of each channel, where they differ; see ``channel_kinds``."""
    channel_names: tuple[str, ...] = ()
    """Of each channel, where there are several and they have names."""
    normalisation: tuple[Normalisation, ...]
    """One for each channel."""
    lowest: tuple[float, ...]
    """Smallest stored value of each channel; what lies outside the volume reads as this."""
    labels: tuple[int, ...] | None
    """Label values that occur, 0 included, or null without a label map."""
    fingerprint: str
    """Hash of the scan's own voxels before any preprocessing."""
    labels_apart: bool = False
    """Whether labelled voxels lie outside of the box around the patient, which was grown to hold them."""
    scans: tuple[str, ...] = ()
    """Such a hash of each channel that shows anything, where a store keeps several together."""
    anonymised: bool = False
    """Whether there is a mask of what was removed to make the patient unknown."""
    checks: Checks | None = None
    """Filled in by the store; null in stores of format 1, which had none."""

    @property
    def affine(self) -> Affine:
        """(4, 4), stored voxel (d, h, w, 1) to RAS millimetres."""
        return np.array(self.rows, dtype=np.float64)

    @property
    def channel_kinds(self) -> tuple[Kind, ...]:
        """Kind of each channel."""
        return self.kinds or (self.kind,) * self.channels


@dataclass(frozen=True)
class Entry:
    """A volume on its way into a store.

    Attributes:
        record: what it is; with ``checks`` once its files are parked.
        image: compressed (C, D, H, W) voxels; empty, as all others, once they are parked.
        label: compressed (1, D, H, W) label map, if any.
        anchors: (N, 3) int16 coordinates of content voxels.
        label_anchors: (N, 4) int16, a label value and coordinates in each row.
        anonymised: compressed (1, D, H, W) mask of what was removed to make the patient unknown, if any.
        notes: what reading its scan had to repair; told, not kept.
        doubt: why it may have been taken for another kind of scan than it is, likewise.
        parked: where in the store's folder its files are, which a worker wrote; empty where they are here.
        memory: bytes that the process which prepared it had at most.
    """

    record: Record
    image: bytes
    label: bytes | None
    anchors: NDArray[np.int16]
    label_anchors: NDArray[np.int16]
    anonymised: bytes | None = None
    notes: tuple[str, ...] = ()
    doubt: str = ""
    parked: str = ""
    memory: int = 0

    def checks(self) -> Checks:
        """Checksums of all its parts."""
        return Checks(
            image=checksum_of(self.image),
            label=None if self.label is None else checksum_of(self.label),
            anonymised=None if self.anonymised is None else checksum_of(self.anonymised),
            anchors=checksum_of(self.anchors.tobytes()),
            label_anchors=checksum_of(self.label_anchors.tobytes()),
        )


@dataclass(frozen=True)
class Origin:
    """Where a volume came from.

    Attributes:
        case: its name.
        source: path of the scan.
        fingerprint: hash of the scan's own voxels.
        channel_names: of each channel, where there are several.
        scans: hash of each channel, likewise.
    """

    case: str
    source: str
    fingerprint: str
    channel_names: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()


def make_entry(
    origin: Origin,
    image: Volume,
    label: Volume | None,
    kinds: Sequence[Kind],
    normalisation: tuple[Normalisation, ...],
    settings: IngestSettings,
) -> Entry:
    """Describe and compress a preprocessed volume.

    Args:
        origin: where it came from.
        image: (C, D, H, W) int16 or float32 (other types become float32), not normalised.
        label: (1, D, H, W) whole numbers on the same grid, or None.
        kinds: of each channel.
        normalisation: one for each channel.
        settings: those of the store.
    """
    voxels = image.data if image.data.dtype == np.int16 else image.data.astype(np.float32)
    values = None if label is None else _small_labels(label.data)
    digest = hashlib.sha256(f"{voxels.dtype.str}{voxels.shape}{settings.model_dump_json()}".encode())
    digest.update(np.ascontiguousarray(voxels).data)
    digest.update(image.affine.tobytes())
    if values is not None:
        digest.update(origin.case.encode() + values.tobytes())
    identity = digest.hexdigest()[:24]
    generator = np.random.default_rng(int(identity, 16))
    record = Record(
        id=identity,
        case=origin.case,
        source=origin.source,
        channels=len(voxels),
        shape=image.shape,
        spacing=image.spacing,
        rows=image.affine.tolist(),
        kind=kinds[0],
        kinds=tuple(kinds) if len(set(kinds)) > 1 else (),
        channel_names=origin.channel_names,
        normalisation=normalisation,
        lowest=tuple(float(channel.min()) for channel in voxels),
        labels=None if values is None else tuple(int(value) for value in np.unique(values)),
        fingerprint=origin.fingerprint,
        scans=origin.scans,
    )
    anchors = _pick(content_mask(*patient_channel(image, kinds)), MAX_ANCHORS, generator)
    by_label = [np.empty((0, 4), dtype=np.int16)]
    for value in record.labels or ():
        if value != 0 and values is not None:
            places = _pick(values[0] == value, MAX_LABEL_ANCHORS, generator)
            by_label.append(np.insert(places, 0, value, axis=1))
    packed = None if values is None else pack(values)
    return Entry(record, pack(voxels), packed, anchors, np.concatenate(by_label))


def anonymise(entry: Entry, mask: Volume) -> Entry:
    """Add a mask of what was removed, around which no patch will be centred; an empty one adds nothing.

    Args:
        entry: from :func:`make_entry`.
        mask: (1, D, H, W) uint8 on the grid of the image, 1 where voxels were removed.

    Raises:
        DataError: nothing of the patient is left.
    """
    removed = mask.data[0].astype(bool)
    if not removed.any():
        return entry
    anchors = entry.anchors[~removed[tuple(entry.anchors.T)]]
    if not len(anchors):
        raise DataError(
            f"The anonymisation mask of {entry.record.source} covers the whole patient; correct it or take "
            "it out of the list."
        )
    identity = hashlib.sha256(entry.record.id.encode() + mask.data.tobytes()).hexdigest()[:24]
    record = entry.record.model_copy(update={"id": identity, "anonymised": True})
    return replace(entry, record=record, anchors=anchors, anonymised=pack(mask.data))


def pack(voxels: NDArray[Any]) -> bytes:
    """Compress (C, D, H, W) voxels into the content of a ``.b2nd`` file, in blocks that are read alone."""
    shape = voxels.shape[1:]
    chunks = tuple(min(side, most) for side, most in zip(shape, _CHUNK, strict=True))
    blocks = tuple(min(side, most) for side, most in zip(chunks, _BLOCK, strict=True))
    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC, clevel=5, filters=[blosc2.Filter.BITSHUFFLE], nthreads=1
    )
    array = blosc2.asarray(
        np.ascontiguousarray(voxels),
        chunks=(1, *chunks),
        blocks=(1, *blocks),
        cparams=parameters,
        contiguous=True,
    )
    return bytes(array.to_cframe())


def _small_labels(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.uint8 if values.max() <= 255 else np.int16)


def _pick(mask: NDArray[np.bool_], most: int, generator: np.random.Generator) -> NDArray[np.int16]:
    """Coordinates (N, 3) of up to ``most`` random voxels of a mask (D, H, W)."""
    places = np.flatnonzero(mask)
    if len(places) > most:
        places = np.sort(generator.choice(places, most, replace=False, shuffle=False))
    return np.stack(np.unravel_index(places, mask.shape), axis=1).astype(np.int16)
