"""The zip archives that torch writes: the same bytes each time, and verified before they are believed."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import torch

from misfm.errors import WeightsError
from misfm.files import atomic_write


def write_archive(path: Path, content: object) -> None:
    """Write what ``torch.load`` reads, atomically; equal content gives equal bytes.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as temporary:
        save(content, temporary)


def save(content: object, path: Path) -> None:
    """Write what ``torch.load`` reads; equal content gives equal bytes, whatever the file is called.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    try:
        with path.open("wb") as file:  # given a path, torch would write its name into the archive
            torch.save(content, file)
    except RuntimeError as error:  # what torch makes of a write that fails
        raise OSError(errno.EIO, "writing failed, most likely the disk is full") from error


def check_archive(path: Path) -> None:
    """Verify the checksums of an archive, which torch writes and does not look at; of other files, nothing.

    That reads the whole file, between one and two gigabytes a second; its tensors, which are needed next,
    then lie in memory that the system lends.

    Raises:
        WeightsError: entries are compressed, or share their bytes; or one is not as it was written.
        Exception: whatever a damaged archive makes ``zipfile`` raise.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
        if unpacked > size:
            raise WeightsError(
                f"{path} is refused: its {size:,} bytes would unpack to {unpacked:,}, and torch writes "
                "checkpoints uncompressed; save it again with torch.save."
            )
        # Torch can be told to compute none, and writes zeros then.
        if any(entry.CRC for entry in entries) and (name := archive.testzip()) is not None:
            raise WeightsError(
                f"{path} is damaged: the checksum of {name!a} differs; copy or download it again."
            )
