"""The scans that ship with the package, under a licence of their own: what ``misfm demo`` shows."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path

from misfm.errors import DataError
from misfm.files import write_bytes

DATASET, UNLABELLED = "Dataset001_Hippocampus", "unlabelled"
"""Folders: a dataset with labelled test cases, and scans of other subjects."""


def copy_demo_scans(out: Path) -> None:
    """Copy the scans, with their licence, into ``out``; files that are there stay.

    Raises:
        DataError: this installation has no such scans, or ``out`` cannot be written to.
    """
    source = importlib.resources.files("misfm").joinpath("demo_scans")
    if not source.is_dir():
        raise DataError("This installation ships no demo scans; install misfm from its repository.")
    _copy(source, out)


def _copy(source: Traversable, out: Path) -> None:
    for part in source.iterdir():
        if part.is_dir():
            _copy(part, out / part.name)
        elif not (out / part.name).exists():
            write_bytes(out / part.name, part.read_bytes())
