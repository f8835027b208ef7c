"""Which volumes of a store a pretraining learns from and which it measures progress on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from misfm.config import PretrainSettings
from misfm.data.channels import same_names
from misfm.data.fingerprint import short_fingerprint
from misfm.data.intensity_text import kinds_text
from misfm.data.label_maps import is_of_people
from misfm.data.record import Record
from misfm.data.splits import Split, read_split
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.seeding import generator_for
from misfm.terminal import logger

VOLUMES = "volumes.json"
"""In the run folder: ids of the volumes it was started with, in the form of a split."""


def scans_of(training: Iterable[Record]) -> tuple[str, ...]:
    """Short fingerprints of the scans that volumes were made from, sorted."""
    found = {scan for record in training for scan in record.scans or (record.fingerprint,)}
    return tuple(sorted(map(short_fingerprint, found)))


def volumes_of(store: Store, settings: PretrainSettings) -> Split:
    """Ids of the volumes of a store to train on and to hold out."""
    return ids_of(*split_records(store.records(), settings))


def ids_of(training: Sequence[Record], held_out: Sequence[Record]) -> Split:
    """Ids of volumes in the form of a split."""
    return {"train": [record.id for record in training], "val": [record.id for record in held_out]}


def kept_split(
    store: Store, settings: PretrainSettings, out: Path, volumes: Split | None
) -> tuple[list[Record], list[Record]]:
    """Return the volumes that the run in ``out`` was started with, or else those chosen before, or here.

    Split again after more were ingested, volumes that it has learnt from would be held out, and its weights
    would not tell of all that they have seen.

    Raises:
        ConfigError: the store no longer holds them all, or they have different channels.
        DataError: too few volumes.
    """
    records = store.records()
    begun = read_split(out / VOLUMES)[0] if (out / VOLUMES).exists() else volumes
    if begun is None:
        training, held_out = split_records(records, settings)
        check_channels([*training, *held_out], settings.store)
        return training, held_out
    by_id = {record.id: record for record in records}
    gone = {identity for part in begun.values() for identity in part} - by_id.keys()
    if gone:
        raise ConfigError(
            f"{len(gone)} of the volumes that the run in {out} was started with are no longer in the store "
            f"{store.path}: ingest them again, or choose another --out."
        )
    training, held_out = ([by_id[identity] for identity in begun[part]] for part in ("train", "val"))
    if more := len(records) - len(training) - len(held_out):
        logger.warning(
            "%s has %d volumes that it had not when the run began; it goes on without them.", store.path, more
        )
    return training, held_out


def split_records(records: Sequence[Record], settings: PretrainSettings) -> tuple[list[Record], list[Record]]:
    """Split the volumes of a store into training and held-out ones, the same way for the same seed."""
    if len(records) < 2:
        raise DataError(
            f"The store {settings.store} holds {len(records)} volume(s); pretraining needs at least two, one "
            "of them to measure progress on. Add scans with `misfm ingest`."
        )
    people = [record for record in records if is_of_people(record)]
    others = [record for record in records if not is_of_people(record)]
    parts = [split_scans(part, settings) for part in (others, people) if part]
    return [r for training, _ in parts for r in training], [r for _, held_out in parts for r in held_out]


def check_channels(records: Sequence[Record], store: str) -> None:
    """Check that volumes have the same channels, in the same order.

    Raises:
        ConfigError: names two that have not.
    """
    first = records[0]
    for record in records:
        several = record.channels > 1
        if (
            record.channels != first.channels
            or not same_names(record.channel_names, first.channel_names)
            or (several and record.channel_kinds != first.channel_kinds)
        ):
            one, other = (
                f"{each.case}: {', '.join(each.channel_names or ['?'] * each.channels)} "
                f"({kinds_text(each.channel_kinds)})"
                for each in (first, record)
            )
            raise ConfigError(
                f"The volumes of {store} have different channels ({one}; {other}): ingest them into stores "
                "of their own, or, where only the kinds differ, give --intensity one rule for each channel."
            )


def split_scans(records: Sequence[Record], settings: PretrainSettings) -> tuple[list[Record], list[Record]]:
    """Split volumes of one kind; those that were made of one scan stay on one side."""
    scans = list(dict.fromkeys(record.fingerprint for record in records))
    if len(scans) < 2:
        raise DataError(
            f"The {len(records)} volumes of {settings.store} were made of one scan; pretraining needs "
            "another to measure progress on."
        )
    order = torch.randperm(len(scans), generator=generator_for(settings.seed, "split")).tolist()
    count = min(max(1, round(settings.validation_share * len(scans))), len(scans) - 1)
    by_scan: dict[str, list[Record]] = {}
    for record in records:
        by_scan.setdefault(record.fingerprint, []).append(record)
    ordered = [by_scan[scans[i]] for i in order]
    return [r for scan in ordered[count:] for r in scan], [r for scan in ordered[:count] for r in scan]
