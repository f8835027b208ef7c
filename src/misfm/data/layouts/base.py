"""The contract of layouts; a new one is one new file in this folder, with one function.

A layout looks at names and headers and says which files are the channels and label maps of which case. What
it recognises is stated in one line. What might mean several things is refused, with what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from misfm.data.case_files import Part
from misfm.data.splits import Split
from misfm.errors import DataError
from misfm.registry import Registry
from misfm.text import one_line
from misfm.volume import Volume


@dataclass(frozen=True)
class Piece:
    """A channel or a label map of a case.

    Attributes:
        source: the file it comes from, or the folder of a series.
        channel: which one along the fourth axis of a 4D file; None of a file that is one channel.
        read: makes the volume where no file holds it as it is, such as a series of slices; else None.
        made_of: all files that it reads, where that is not ``source`` and those beside it.
    """

    source: Path
    channel: int | None = None
    read: Callable[[], Volume] | None = None
    made_of: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FoundCase:
    """A case that a layout has found.

    Attributes:
        name: no other case has it; a file name, too.
        images: one for each channel.
        label: None where nobody drew a label map.
        part: whether it is to train or to test on.
    """

    name: str
    images: tuple[Piece, ...]
    label: Piece | None
    part: Part = "Tr"


@dataclass(frozen=True)
class Arrangement:
    """What a layout makes of a folder.

    Attributes:
        rule: what was recognised and how files were assigned, in one line.
        channels: names for ``dataset.json``; None where voxels must tell CT from MR.
        cases: at least one with a label map.
        labels: names and values for ``dataset.json``; None where they follow from the values in label maps.
        known_labels: such names by the values that the label maps must hold then, where the source is known.
        more: further keys for ``dataset.json``, such as ``subjects``.
        split: of the training cases, where the source divides them.
        notes: what was left out, in a sentence each.
        by_name: whether label maps are made of structures with names, so that ``labels`` may have any values.
    """

    rule: str
    channels: tuple[str | None, ...]
    cases: tuple[FoundCase, ...]
    labels: Mapping[str, Any] | None = None
    known_labels: Sequence[KnownLabels] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    split: Split | None = None
    notes: tuple[str, ...] = ()
    by_name: bool = False


@dataclass(frozen=True)
class KnownLabels:
    """Labels of datasets that many use.

    Attributes:
        values: all that label maps may hold.
        labels: for ``dataset.json``.
        more: further keys for ``dataset.json``.
    """

    values: frozenset[int]
    labels: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)


Layout = Callable[[Path], Arrangement | None]
"""Looks at a folder; None where it lies otherwise. Raises a DataError where it lies so, but not all fits."""
LAYOUTS: Registry[Layout] = Registry("layout", "misfm.data.layouts")


def recognise(folder: Path) -> Arrangement:
    """Return what a folder holds, by the one layout that fits.

    Raises:
        DataError: no such folder; none fits, or several do; or cases that cannot be told apart.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the folder of images and label maps.")
    found = [one for name in LAYOUTS.names() if (one := LAYOUTS.get(name)(folder)) is not None]
    if len(found) > 1:
        rules = "; or ".join(one.rule for one in found)
        raise DataError(f"{folder} can be read in several ways: {rules}. Give the folder of one of them.")
    if not found:
        raise DataError(
            f"{folder} lies in no way that is known (it holds {contents(folder)}): known are that of the "
            "Decathlon, DICOM with label objects, a folder for each case, image and label map side by side "
            "with names that differ at the end, and folders of images and of label maps; rearrange it."
        )
    return found[0]


def contents(folder: Path) -> str:
    """Return the first of what a folder holds, for messages."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [one_line(entry.name) + ("/" if entry.is_dir() else "") for entry in entries[:6]]
    return ", ".join([*names, *(["..."] if len(entries) > len(names) else [])]) or "nothing"
