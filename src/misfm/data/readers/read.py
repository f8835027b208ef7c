"""A scan from a path: the reader whose suffix the name bears, else the one that recognises the content.

Axes (D, H, W) are slowest first, and the affine maps (d, h, w) to RAS millimetres. Whatever is wrong with a
file becomes one DataError that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from misfm.data.checks import check_regular, readable
from misfm.data.readers.base import READERS, Reader, SeriesReader
from misfm.errors import DataError
from misfm.volume import Volume


def read_volume(path: str | Path) -> Volume:
    """Read one scan.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a directory with one DICOM series, or one file of a series.

    Returns:
        Volume (1, D, H, W) of uint8, int16 or float32 on the file's own grid; int16 stays int16.

    Raises:
        DataError: a file that is missing, damaged or of another kind; a 2D or 4D image; no voxels; NaN or
            infinite voxels; colour voxels; an affine that is singular, shearing or not finite; a DICOM series
            with unevenly spaced slices.
    """
    return _read(Path(path), lambda reader, one: reader.read(one))


def read_grid(path: str | Path) -> Volume:
    """Read where the voxels of a scan lie, by its header alone where its format allows that.

    Args and errors are those of :func:`read_volume`, but for what is wrong with voxels.

    Returns:
        Volume (1, D, H, W) whose voxels mean nothing.
    """
    return _read(Path(path), lambda reader, one: reader.grid(one))


def _read(path: Path, read: Callable[[Reader, Path], Volume]) -> Volume:
    with readable(path):
        if not path.is_dir():
            check_regular(path)
        reader = reader_of(path)
    if reader is None:
        raise not_readable(path)
    try:
        with readable(path):
            return read(reader, path)
    except DataError:
        # A name may mislead: the content is looked at where the name's reader fails, so that good files are
        # opened once.
        other = _recognising(path)
        if other is None or type(other) is type(reader):
            raise
    with readable(path):
        return read(other, path)


def reader_of(path: Path) -> Reader | None:
    """Return the reader of a file, by its name and else its content, or of a folder; None: no scan."""
    named = None if path.is_dir() else _named(path)
    return named or _recognising(path)


def is_volume_name(path: Path) -> bool:
    """Whether a file name says that the file alone is a scan or label map; DICOM's are parts of one."""
    reader = _named(path)
    return reader is not None and not isinstance(reader, SeriesReader)


def files_beside(path: Path) -> list[Path]:
    """Further files that a file needs, by its name, such as that of the voxels of a header."""
    reader = _named(path)
    return reader.beside(path) if reader else []


def stem(path: Path) -> str:
    """The file name without the suffixes of scans: ``case_1.nii.gz`` is ``case_1``."""
    return path.name[: len(path.name) - len(_suffix(path))]


def not_readable(path: Path) -> DataError:
    """Say that a file is of no known format, and which there are; or that a folder holds no scan."""
    if path.is_dir():
        return DataError(
            f"{path} holds no DICOM image series; give a scan or a folder with the slices of one."
        )
    return DataError(f"{path} is no scan misfm can read; give {formats()}.")


def formats() -> str:
    """All formats that can be read, with their suffixes, as messages name them."""
    titles = [f"{reader.title} ({', '.join(reader.suffixes)})" for reader in _readers()]
    return f"{', '.join(titles[:-1])} or {titles[-1]}"


def _readers() -> list[Reader]:
    return [READERS.get(name)() for name in READERS.names()]


def _suffix(path: Path) -> str:
    """The suffix of a scan that a file name bears, the longest where several would do, or nothing."""
    name = path.name.lower()
    suffixes = [suffix for reader in _readers() for suffix in reader.suffixes if name.endswith(suffix)]
    return max(suffixes, key=len, default="")


def _named(path: Path) -> Reader | None:
    suffix = _suffix(path)
    return next((reader for reader in _readers() if suffix in reader.suffixes), None)


def _recognising(path: Path) -> Reader | None:
    return next((reader for reader in _readers() if reader.recognises(path)), None)
