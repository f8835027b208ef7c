"""DICOM: files with any name, grouped by series; :mod:`misfm.data.dicom` does the work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from misfm.data import dicom
from misfm.data.readers.base import READERS, Listing, Series, SeriesReader
from misfm.data.readers.read import not_readable


@READERS.register("dicom")
class DicomReader(SeriesReader):
    """Reads a folder with one series, or the series that a file belongs to."""

    title = "DICOM"
    suffixes = (".dcm",)

    def recognises(self, path: Path) -> bool:
        """Whether a file is DICOM by its content, or any file of a folder is."""
        files = path.iterdir() if path.is_dir() else [path]
        return any(file.is_file() and dicom.is_dicom(file) for file in files)

    def list_series(self, files: Iterable[Path]) -> Listing:
        """Group files by patient and series; see :func:`misfm.data.dicom.list_series`."""
        return dicom.list_series(files)

    def series_at(self, path: Path) -> Series:
        """Find the series of a folder or file; see :func:`misfm.data.dicom.series_at`."""
        if path.is_file() and not dicom.is_dicom(path):
            raise not_readable(path)
        return dicom.series_at(path)
