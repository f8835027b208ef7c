"""Channels of a case that become one volume: which files they are, and whether they are those of another.

``CASE_0000``, ``CASE_0001``, … of one folder belong together, as in nnU-Net datasets, and so do files with
words for channels in their names: ``CASE_ct``, ``CASE_pet``, or ``CASE/CASE-t1n``, ``CASE/flair``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfm.data.dataset import check_grid
from misfm.data.fingerprint import fingerprint
from misfm.data.intensity import Kind, detect, kind_of_name
from misfm.data.layouts.words import channel_name, channel_order, is_label, split_key, take_apart
from misfm.data.readers import stem
from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.terminal import logger
from misfm.volume import Volume

_MOST_NUMBERED = 16
"""Channels that files of plain folders are taken for; with more numbers these are of scans."""


@dataclass(frozen=True)
class JoinedScan(ScanSource):
    """The channels of a case, read as one volume; its path is that of the first.

    Attributes:
        channels: their scans, in order.
        names: what they are called; empty where they are only numbered.
    """

    channels: tuple[ScanSource, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What reading had to repair, of all channels."""
        return [note for channel in self.channels for note in channel.notes]

    @property
    def stamp(self) -> str:
        """States of all channels."""
        return "; ".join(channel.stamp for channel in self.channels)

    @property
    def files(self) -> list[Path]:
        """All files that it lies in."""
        return [file for channel in self.channels for file in channel.files]

    def read(self) -> Volume:
        """Read all channels (C, D, H, W).

        Raises:
            DataError: one cannot be read, lies on another grid than the first, or is missing.
        """
        if self.fault:
            raise DataError(self.fault)
        return read_together(self.channels)

    def read_anonymised(self, scan: Volume) -> Volume | None:
        """Read what was removed from any of the channels."""
        masks = [mask for channel in self.channels if (mask := channel.read_anonymised(scan)) is not None]
        return scan.with_data(np.maximum.reduce([mask.data for mask in masks])) if masks else None

    def kinds(self, volume: Volume) -> tuple[Kind, ...]:
        """Return what each channel is: as its dataset or its name says, else by its voxels."""
        names = self.names or ("",) * len(self.channels)
        return tuple(
            _kind(channel, name, volume.with_data(voxels[None]))
            for channel, name, voxels in zip(self.channels, names, volume.data, strict=True)
        )


def read_together(channels: Sequence[ScanSource]) -> Volume:
    """Read scans of one channel each as one volume (C, D, H, W).

    Raises:
        DataError: one cannot be read, or lies on another grid than the first.
    """
    volumes = [channel.read() for channel in channels]
    for channel, volume in zip(channels[1:], volumes[1:], strict=True):
        check_grid(channel.path, volume, channels[0].path, volumes[0])
    return volumes[0].with_data(np.concatenate([volume.data for volume in volumes]))


def join_channels(scans: Sequence[ScanSource]) -> list[ScanSource]:
    """Put the channels of each case together; what is a channel of nothing stays a scan of its own.

    A case that lacks a channel which others beside it have gets a fault, so that reading it tells. Label maps
    that lie in the folder of a case are passed over. Series of DICOM stay apart.
    """
    groups: dict[tuple[Path, str], dict[str, ScanSource]] = {}
    alone: list[ScanSource] = []
    for scan in scans:
        place = None if scan.series or scan.fault else _place(scan)
        if place is None or place[2] in groups.get(place[:2], ()):  # no channel, or one in two files
            alone.append(scan)
        else:
            groups.setdefault(place[:2], {})[place[2]] = scan
    wanted: dict[Path, set[str]] = {}
    for (beside, _), channels in groups.items():
        wanted.setdefault(beside, set()).update(channels)
    joined = list(alone)
    passed: list[str] = []
    for (beside, case), channels in groups.items():
        images = [key for key in wanted[beside] if not is_label(split_key(key))]
        joined += _join(case, channels, channel_order(images))
        passed += channels.keys() - set(images) if images else ()
    if passed:
        logger.info("label maps beside channels are passed over (%s)", ", ".join(sorted(set(passed))))
    return sorted(joined, key=lambda scan: scan.path)


def named_channels(
    scans: Sequence[ScanSource], names: Sequence[str], number: int
) -> tuple[list[tuple[str, tuple[ScanSource, ...]]], list[ScanSource]]:
    """Find cases whose channels are recognised by words in the names of their files.

    Args:
        scans: of which the rest belongs to no such case.
        names: of the channels wanted; empty where they are not known: any words do, and their order means
            nothing.
        number: of channels wanted.

    Returns:
        Name and channels of each case, and the label maps beside them.
    """
    groups: dict[tuple[Path, str], dict[str, ScanSource]] = {}
    for scan in scans:
        place = None if scan.series or scan.fault or scan.channel else _place(scan)
        if place is not None and not place[2].isdecimal():
            groups.setdefault(place[:2], {}).setdefault(place[2], scan)
    wanted = plain_names(names)
    found, passed = [], []
    for (_, case), channels in groups.items():
        keys = channel_order(key for key in channels if not is_label(split_key(key)))
        called = dict(zip(plain_names(channel_name(key) or key for key in keys), keys, strict=True))
        if len(keys) == len(called) == number > 1 and (not wanted or sorted(called) == sorted(wanted)):
            found.append((case, tuple(channels[called[name]] for name in wanted or called)))
            passed += [scan for key, scan in channels.items() if key not in keys]
    if passed:
        logger.info("label maps beside channels are passed over, such as %s", passed[0].path.name)
    return found, passed


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether channels may be the same in the same order: their names are alike, or some are not known."""
    return not one or not other or plain_names(one) == plain_names(other)


def plain_names(names: Iterable[str]) -> list[str]:
    """Return names of channels as they are compared: letters and digits alone."""
    return [re.sub(r"[\W_]+", "", name).casefold() for name in names]


def scans_in(volume: Volume) -> tuple[str, ...]:
    """Return the fingerprint of each of several channels, but of those that show nothing."""
    if len(volume.data) == 1:
        return ()
    shown = [channel for channel in volume.data if channel.min() < channel.max()]
    return tuple(fingerprint(volume.with_data(channel[None])) for channel in shown)


def _place(scan: ScanSource) -> tuple[Path, str, str] | None:
    """Where cases like that of a scan lie, its case, and which channel of it this is; None for no channel."""
    folder, name = scan.path.parent, stem(scan.path)
    if scan.channel is not None:
        return scan.channel.dataset, scan.channel.case, f"{scan.channel.number:04d}"
    if numbered := re.fullmatch(r"(.+)_(\d{4})", name):
        return folder, numbered[1], numbered[2]
    rest = name.removeprefix(folder.name)
    if rest != name and re.fullmatch(r"[\W_]+\w.*", rest):
        return folder.parent / "*", folder.name, re.sub(r"^[\W_]+", "", rest).lower()
    alone = take_apart(f"x_{name}")
    if alone.case == "x" and alone.key:  # words, and nothing else
        return folder.parent / "*", folder.name, alone.key
    words = take_apart(name)
    return (folder / "*", words.case, words.key) if words.key else None


def _join(case: str, channels: Mapping[str, ScanSource], keys: Sequence[str]) -> list[ScanSource]:
    """One scan of the channels of a case, of which others beside it have ``keys``."""
    of_dataset = next(iter(channels.values())).channel
    if of_dataset is not None:
        keys = [f"{number:04d}" for number in range(len(of_dataset.names))]
    elif not keys or (keys[0].isdecimal() and (keys[0] != "0000" or len(keys) > _MOST_NUMBERED)):
        return list(channels.values())  # no channels, or the numbers are of scans
    there = [channels[key] for key in keys if key in channels]
    if len(keys) == 1 or not there:
        return there
    named = () if keys[0].isdecimal() else tuple(channel_name(key) or key for key in keys)
    names = of_dataset.names if of_dataset else named
    lacking = [key for key in keys if key not in channels]
    fault = ""
    if lacking:
        fault = (
            f"{there[0].path}: case {case} is without channel {', '.join(lacking)}, which others beside it "
            "have; add the file, or ingest without --channels together."
        )
    return [
        JoinedScan(
            there[0].path, case, fault=fault, folders=there[0].folders, channels=tuple(there), names=names
        )
    ]


def _kind(scan: ScanSource, name: str, volume: Volume) -> Kind:
    if scan.kind is not None:
        return scan.kind
    named = kind_of_name(name)
    return detect(volume, None if named == "mr" else name)
