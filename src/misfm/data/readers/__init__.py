"""Scans from files: one file a family of formats; :mod:`misfm.data.readers.base` has their contract."""

from misfm.data.readers.base import READERS, Listing, Reader, Series, SeriesReader
from misfm.data.readers.read import (
    files_beside,
    formats,
    is_volume_name,
    read_grid,
    read_volume,
    reader_of,
    stem,
)

__all__ = [
    "READERS",
    "Listing",
    "Reader",
    "Series",
    "SeriesReader",
    "files_beside",
    "formats",
    "is_volume_name",
    "read_grid",
    "read_volume",
    "reader_of",
    "stem",
]
