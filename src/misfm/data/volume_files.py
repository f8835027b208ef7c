"""The files of a store: an image, a label map and a mask for each volume, compressed in blocks read alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import MAKE_AGAIN, Checksum, checksum_of_file, fault_of_file
from misfm.data.open_volumes import opened, read_box
from misfm.data.record import Entry, Record
from misfm.errors import DataError
from misfm.files import write_bytes
from misfm.volume import Box, Shape, triple

IMAGE, LABEL, ANONYMISED = "", ".label", ".anon"
"""What tells the files of a volume apart."""
_TYPES = {IMAGE: ("int16", "float32"), LABEL: ("uint8", "int16"), ANONYMISED: ("uint8",)}
"""What the voxels of each may be."""


class VolumeFiles:
    """The folder ``volumes`` of a store.

    Args:
        folder: that one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, entry: Entry) -> None:
        """Write all files of a volume, each atomically.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        for part, content in ((IMAGE, entry.image), (LABEL, entry.label), (ANONYMISED, entry.anonymised)):
            if content is not None:
                write_bytes(self.path(entry.record.id, part), content)

    def remove(self, identities: Iterable[str]) -> None:
        """Remove the files of volumes."""
        for identity in identities:
            for part in _TYPES:
                with suppress(OSError):
                    self.path(identity, part).unlink()

    def path(self, identity: str, part: str) -> Path:
        """Where a file of a volume is."""
        return self.folder / f"{identity}{part}.b2nd"

    def faults_of(self, record: Record, *, again: bool = False) -> Iterator[str]:
        """Name the files of a volume that are damaged, each with what is wrong with it.

        Args:
            record: of the volume; without checksums, as in stores of format 1, only lost files are noticed.
            again: read files even if this process has.
        """
        for part in _parts_of(record):
            file, expected = self.path(record.id, part), _check_of(record, part)
            if expected:
                fault = fault_of_file(file, expected, again=again)
            else:
                fault = "" if file.exists() else "is missing"
            if fault:
                yield f"{file} {fault}"

    def checksums(self, record: Record) -> dict[str, Checksum | None]:
        """Checksums of the files of a volume as they are; one that cannot be read gets one that differs."""
        found: dict[str, Checksum | None] = dict.fromkeys(_TYPES)
        for part in _parts_of(record):
            try:
                self.read(record, part, Box((0, 0, 0), record.shape))
                found[part] = checksum_of_file(self.path(record.id, part))
            except (DataError, OSError):
                found[part] = Checksum(0, 0)
        return found

    def read(self, record: Record, part: str, box: Box) -> tuple[NDArray[Any], Box]:
        """Read part of a volume, (C, d, h, w), decompressing only the blocks it touches.

        Returns:
            The voxels, what lies outside the volume padded with the lowest value or 0; and which part of them
            lies inside.

        Raises:
            DataError: the file is missing, damaged, or holds something else than its record says.
        """
        file, expected = self.path(record.id, part), _check_of(record, part)
        if expected and (fault := fault_of_file(file, expected)):
            raise damaged(record, f"{file} {fault}")
        fill = record.lowest if part == IMAGE else (0,)
        inside = _overlap(box, record.shape)
        empty = 0 in inside.size
        try:
            array = opened(file)
            if array.shape != (len(fill), *record.shape) or array.dtype.name not in _TYPES[part]:
                raise ValueError(f"it holds {array.dtype} {array.shape}")
            voxels = read_box(array, inside)
        except (OSError, RuntimeError, ValueError) as error:
            raise damaged(record, f"{file} is missing or damaged ({error})") from error
        if inside == box:
            return voxels, Box((0, 0, 0), box.size)
        patch = np.empty((len(fill), *box.size), dtype=voxels.dtype)
        patch[...] = np.array(fill).reshape(-1, 1, 1, 1)
        valid = _moved(inside, box.start)
        if not empty:
            patch[:, *valid.slices] = voxels
        return patch, valid


def damaged(record: Record, fault: str) -> DataError:
    """Say what to do about a damaged file; ``fault`` begins the sentence."""
    return DataError(f"{fault}; {MAKE_AGAIN}, which makes it again from {record.source}.")


def _overlap(box: Box, shape: Shape) -> Box:
    """The part of a box that lies in a volume; of size 0, 0, 0 if there is none."""
    start = [max(0, a) for a in box.start]
    size = [min(stop, side) - a for a, stop, side in zip(start, box.stop, shape, strict=True)]
    if min(size) <= 0:
        return Box(box.start, (0, 0, 0))
    return Box(triple(start), triple(size))


def _moved(box: Box, origin: Shape) -> Box:
    """The box as seen from ``origin``."""
    return Box(triple(a - b for a, b in zip(box.start, origin, strict=True)), box.size)


def _parts_of(record: Record) -> list[str]:
    """The files that a volume has."""
    there = {IMAGE: True, LABEL: record.labels is not None, ANONYMISED: record.anonymised}
    return [part for part, is_there in there.items() if is_there]


def _check_of(record: Record, part: str) -> Checksum | None:
    """Checksum of a file, None in a store of format 1."""
    checks = record.checks
    if checks is None:
        return None
    return {IMAGE: checks.image, LABEL: checks.label, ANONYMISED: checks.anonymised}[part]
