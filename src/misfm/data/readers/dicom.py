"""DICOM: files with any name, grouped by series; :mod:`misfm.data.dicom` does the work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from misfm.data import dicom
from misfm.data.readers.base import READERS, Series, SeriesReader
from misfm.data.readers.read import not_readable


@READERS.register("dicom")
class DicomReader(SeriesReader):
    """Reads a folder with one series, or the series that a file belongs to."""

    title = "DICOM"
    suffixes = (".dcm",)

    def recognises(self, path: Path) -> bool:
        """Whether a file bears the DICOM mark, or any file of a folder does."""
        files = path.iterdir() if path.is_dir() else [path]
        return any(file.is_file() and dicom.is_dicom(file) for file in files)

    def list_series(self, files: Iterable[Path]) -> tuple[list[Series], list[Path]]:
        """Group files by SeriesInstanceUID; see :func:`misfm.data.dicom.list_series`."""
        return dicom.list_series(files)

    def series_at(self, path: Path) -> Series:
        """Find the series of a folder or file; see :func:`misfm.data.dicom.series_at`."""
        if path.is_file() and not dicom.is_dicom(path):
            raise not_readable(path)
        return dicom.series_at(path)
