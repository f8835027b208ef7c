"""The files of a store, for each volume: an image, a label map and a mask, compressed in blocks that are read
alone, and the places where patches may be centred."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from misfm.data.checksums import MAKE_AGAIN, Checksum, checksum_of, checksum_of_file, fault_of_file
from misfm.data.open_volumes import opened, read_box
from misfm.data.places import pack_places, unpack_anchors, unpack_label_anchors
from misfm.data.record import Entry, Record
from misfm.data.remote import RemoteFolder
from misfm.errors import DataError
from misfm.files import make_folder, sync_folder, write_bytes, write_synced
from misfm.volume import Box, Shape, triple

IMAGE, LABEL, ANONYMISED = "", ".label", ".anon"
"""What tells the files of a volume apart."""
PLACES = ".places"
"""Ending of the file of places where patches may be centred."""
Places = Literal["anchors", "label_anchors"]
_PATIENCE = 20
"""Seconds after which what another machine wrote is visible on any shared disk."""
_TYPES = {IMAGE: ("int16", "float32"), LABEL: ("uint8", "int16"), ANONYMISED: ("uint8",)}
"""What the voxels of each may be."""


class VolumeFiles:
    """The folder ``volumes`` of a store.

    Args:
        folder: that one.
        source: where files come from that are not in the folder, or not whole.
    """

    def __init__(self, folder: Path, source: RemoteFolder | None = None) -> None:
        self.folder = folder
        self.source = source
        self.parking = folder.with_name(".parked")

    def write(self, entry: Entry) -> Record:
        """Write all files of a volume, each atomically, or adopt those that were parked.

        Returns:
            Its record, with checksums.

        Raises:
            DataError: the disk is full, the folder cannot be written, or nothing was parked there.
        """
        if entry.parked:
            self._adopt(entry)
            return entry.record
        record = entry.record.model_copy(update={"checks": entry.checks()})
        for path, content in self._contents(entry):
            write_bytes(path, content)
        return record

    def park(self, entry: Entry) -> Entry:
        """Write all files of a volume to where no reader looks, for another process that adds it.

        Returns:
            What is left of the entry: its record, with checksums, and where its files are.

        Raises:
            DataError: the disk is full or the folder cannot be written.
        """
        folder = self.parking / secrets.token_hex(8)
        make_folder(folder)
        for path, content in self._contents(entry):
            write_synced(folder / path.name, content)
        record = entry.record.model_copy(update={"checks": entry.checks()})
        rest = replace(entry, record=record, image=b"", label=None, anonymised=None, parked=folder.name)
        return replace(rest, anchors=entry.anchors[:0], label_anchors=entry.label_anchors[:0])

    def discard(self, entry: Entry) -> None:
        """Remove what was parked of an entry that will not be added."""
        if entry.parked:
            shutil.rmtree(self.parking / entry.parked, ignore_errors=True)

    def clear_parking(self) -> None:
        """Remove whatever is parked: all of it is nobody's where nobody adds to the store."""
        shutil.rmtree(self.parking, ignore_errors=True)

    def _contents(self, entry: Entry) -> list[tuple[Path, bytes]]:
        """The files of an entry."""
        identity, shape = entry.record.id, entry.record.shape
        voxels = ((IMAGE, entry.image), (LABEL, entry.label), (ANONYMISED, entry.anonymised))
        files = [(self.path(identity, part), content) for part, content in voxels if content is not None]
        return [
            *files,
            (self.places_path(identity), pack_places(entry.anchors, entry.label_anchors, shape)),
        ]

    def _adopt(self, entry: Entry) -> None:
        """Move parked files to where readers look; on shared disks they may appear a while after they were
        written."""
        folder, until = self.parking / entry.parked, time.monotonic() + _PATIENCE
        while not folder.exists() and time.monotonic() < until:
            time.sleep(0.1)
        record = entry.record
        names = [self.path(record.id, part).name for part in _parts_of(record)]
        try:
            for name in (*names, self.places_path(record.id).name):
                os.replace(folder / name, self.folder / name)
            sync_folder(self.folder)
            shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError as error:
            raise DataError(
                f"What a worker wrote into {folder} is not there: give a --store in a folder that this "
                "process and all workers share."
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"Cannot write {self.folder}: {reason}; choose another folder.") from error

    def remove(self, identities: Iterable[str]) -> None:
        """Remove the files of volumes."""
        for identity in identities:
            for part in _TYPES:
                with suppress(OSError):
                    self.path(identity, part).unlink()
            with suppress(OSError):
                self.places_path(identity).unlink()

    def places_path(self, identity: str) -> Path:
        """Where the places of a volume are."""
        return self.folder / f"{identity}{PLACES}"

    def places(self, record: Record, kind: Places) -> NDArray[np.int16] | None:
        """Read where patches of a volume may be centred; None without such a file: formats 1 and 2 had none.

        Raises:
            DataError: the file was damaged, or cannot be read.
        """
        file = self.places_path(record.id)
        try:
            try:
                return _read_places(file, record, kind)
            except (FileNotFoundError, ValueError):
                if self.source is None or not self.source.fetch(f"{self.folder.name}/{file.name}"):
                    raise
                return _read_places(file, record, kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise damaged(record, f"{file} cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise damaged(record, f"{file} is damaged: {error}") from error

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
            if fault := self._fault_of(file, expected, again=again):
                yield f"{file} {fault}"

    def _fault_of(self, file: Path, expected: Checksum | None, *, again: bool = False) -> str:
        """What is wrong with a file; copies that are missing or damaged are copied first."""
        fault = _fault(file, expected, again=again)
        if fault and self.source is not None and self.source.fetch(f"{self.folder.name}/{file.name}"):
            fault = _fault(file, expected, again=True)
        return fault

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
        if (expected or self.source) and (fault := self._fault_of(file, expected)):
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


def _read_places(file: Path, record: Record, kind: Places) -> NDArray[np.int16]:
    """Read places; a ValueError where they were damaged."""
    unpack = unpack_anchors if kind == "anchors" else unpack_label_anchors
    places = unpack(file.read_bytes(), record.shape)
    if record.checks and checksum_of(places.tobytes()) != getattr(record.checks, kind):
        raise ValueError("its checksum differs")
    return places


def damaged(record: Record, fault: str) -> DataError:
    """Say what to do about a damaged file; ``fault`` begins the sentence."""
    return DataError(f"{fault}; {MAKE_AGAIN}, which makes it again from {record.source}.")


def _fault(file: Path, expected: Checksum | None, *, again: bool) -> str:
    """What is wrong with a file; of one without checksum, only that it is missing."""
    if expected is None:
        return "" if file.exists() else "is missing"
    return fault_of_file(file, expected, again=again)


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
