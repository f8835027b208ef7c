"""Which scans are a case, what it is called, and its voxels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from misfm.data.channels import named_channels, read_together
from misfm.data.readers import stem
from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.inference.predictions import CaseSource
from misfm.text import one_line
from misfm.volume import Volume

JOINT = "__"
"""Between folders and file in the name of a case."""


@dataclass(frozen=True)
class Case:
    """What is labelled together.

    Attributes:
        name: unlike that of any other case, in one printable line.
        channels: at least one scan.
        fault: why it cannot be read, a sentence.
    """

    name: str
    channels: tuple[ScanSource, ...]
    fault: str = ""

    @property
    def path(self) -> Path:
        """The file or folder of the first channel, for messages."""
        return self.channels[0].path

    @property
    def source(self) -> CaseSource:
        """What the case is known by: its files, or the UIDs of its DICOM series."""
        known = [_known_by(one) for one in self.channels]
        stamp = "; ".join(channel.stamp for channel in self.channels)
        return CaseSource(known[0] if len(known) == 1 else known, self.channels[0].source, stamp)

    @property
    def modalities(self) -> list[str | None]:
        """What each channel says that it is; of a dataset only CT, which its name leaves no doubt of."""
        return [channel.modality or ("CT" if channel.kind == "ct" else None) for channel in self.channels]

    @property
    def notes(self) -> list[str]:
        """What reading had to repair, once it has."""
        return [note for channel in self.channels for note in channel.notes]

    def read(self, in_channels: int) -> Volume:
        """Read the case; all of its channels must be there and share a grid."""
        if self.fault:
            raise DataError(self.fault)
        if len(self.channels) != in_channels:
            found = ", ".join(str(channel.path) for channel in self.channels)
            raise DataError(
                f"Case {self.name} has {len(self.channels)} channel(s) ({found}) and the network takes "
                f"{in_channels}; name its files {self.name}_0000, {self.name}_0001, … and give all of them."
            )
        return read_together(self.channels)


def _known_by(scan: ScanSource) -> str:
    """The identifier of a DICOM series, which finds it in any archive, and its part; else the file."""
    if scan.series is None or not re.fullmatch(r"[0-9.]+", scan.series.uid):
        return scan.source
    return f"{scan.series.uid}#{scan.series.part}" if scan.series.part else scan.series.uid


def group_channels(
    scans: Sequence[ScanSource], in_channels: int, channel_names: Sequence[str] = ()
) -> list[Case]:
    """Collect the channels of each case.

    ``CASE_0000`` alone is ``CASE``, as in nnU-Net datasets; with several channels ``CASE_0000``,
    ``CASE_0001``, … of one folder belong together, and so do files with words for the channels in their names
    (:mod:`misfm.data.channels`), as in the folders of BraTS; where the network's channels have no names, such
    a case cannot be read, for nothing says which is which. Any other file is a case of its own.

    A file in a folder below the source that was searched has the folder in its name, so that the name is the
    same whatever else is there: ``patient/ct.nii.gz`` is ``patient__ct``. Where names are still the same,
    as of files that were given one by one, the folders above tell them apart; where these are the same, too,
    a number does.
    """
    groups: dict[tuple[Path, str], list[ScanSource]] = {}
    named, passed = named_channels(scans, channel_names, in_channels)
    taken = {scan.source for scan in (*passed, *(channel for _, channels in named for channel in channels))}
    scans = [scan for scan in scans if scan.source not in taken]
    for scan in sorted(scans, key=lambda scan: scan.path):
        match = re.fullmatch(r"(.+)_(\d{4})", scan.case)
        if scan.case + "_0000" == one_line(stem(scan.path)):  # a dataset has told the case from the channel
            match = None
        is_channel = match is not None and int(match[2]) < in_channels
        name = match[1] if match is not None and is_channel else scan.case
        groups.setdefault((scan.path.parent, name), []).append(scan)
    cases = [*((name, tuple(channels)) for (_, name), channels in groups.items()), *named]
    names = _distinct([(name, _beside(name, channels[0])) for name, channels in cases])
    faults = ["" for _ in groups] + ["" if channel_names else _nameless(*case) for case in named]
    return [
        Case(name, channels, fault) for name, (_, channels), fault in zip(names, cases, faults, strict=True)
    ]


def _nameless(name: str, channels: Sequence[ScanSource]) -> str:
    """Why files with words for channels in their names are of no use to weights that name none."""
    files = ", ".join(str(channel.path) for channel in channels)
    return (
        f"The weights do not say what their channels are called, so the names of the files of case {name} "
        f"({files}) do not tell the order: name them {name}_0000, {name}_0001, … in that of the training."
    )


def _beside(name: str, scan: ScanSource) -> ScanSource:
    """A scan without the folder that is called like its case: ``BraTS-1/BraTS-1-t1`` is ``BraTS-1``."""
    return replace(scan, folders=scan.folders[:-1]) if scan.folders[-1:] == (name,) else scan


def _distinct(cases: Sequence[tuple[str, ScanSource]]) -> list[str]:
    """The name of each case, given that of its file: with the folders that tell those of one name apart."""
    alike: dict[str, list[tuple[str, ScanSource]]] = {}
    for case in cases:
        alike.setdefault(_in_folders(*case, 0), []).append(case)
    depth = {name: _telling(group) for name, group in alike.items()}
    names: dict[str, None] = {}
    for case in cases:
        names[unused_name(_in_folders(*case, depth[_in_folders(*case, 0)]), names)] = None
    return list(names)


def _telling(cases: Sequence[tuple[str, ScanSource]]) -> int:
    """How many folders above tell cases of one name apart; 0 where none do."""
    most = max(len(scan.path.parts) for _, scan in cases)
    enough = (
        depth for depth in range(most) if len({_in_folders(*case, depth) for case in cases}) == len(cases)
    )
    return next(enough, 0)


def _in_folders(name: str, scan: ScanSource, more: int) -> str:
    """A name behind the folders below the source, and as many above as said."""
    above = scan.path.parent.parts[1 : len(scan.path.parent.parts) - len(scan.folders)]
    return one_line(JOINT.join([*above[len(above) - min(more, len(above)) :], *scan.folders, name]))


def unused_name(name: str, taken: Mapping[str, object]) -> str:
    """Return a name, with the first free number behind it if it is taken."""
    names = (f"{name}-{number}" if number > 1 else name for number in count(1))
    return next(name for name in names if name not in taken)
