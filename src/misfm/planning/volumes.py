"""Which volumes of a store a pretraining learns from and which it measures progress on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from misfm.config import PretrainSettings
from misfm.data.channels import same_names
from misfm.data.fingerprint import short_fingerprint
from misfm.data.generated import is_generated
from misfm.data.intensity_text import kinds_text
from misfm.data.label_maps import of_people
from misfm.data.record import Record
from misfm.data.records import Records
from misfm.data.splits import Split, read_split
from misfm.data.store import Store
from misfm.data.stores import open_stores
from misfm.errors import ConfigError, DataError
from misfm.seeding import generator_for
from misfm.terminal import logger

VOLUMES = "volumes.json"
"""In the run folder: ids of the volumes it was started with, in the form of a split."""


def open_scans(settings: PretrainSettings, out: Path) -> Store:
    """Open the store of a pretraining, or all of them as one; none of generated volumes.

    Args:
        settings: name them.
        out: run folder, beside which copies of stores at addresses lie.

    Raises:
        DataError: no store there, or an address that does not answer.
        ConfigError: stores that do not go together.
    """
    if any(map(is_generated, settings.more_stores)):
        raise ConfigError("Generated volumes go with no other store: give one --store.")
    copies = Path(settings.store_copies) if settings.store_copies else out.with_name(f"{out.name}-stores")
    return open_stores([settings.store, *settings.more_stores], copies)


def scans_of(training: Sequence[Record]) -> tuple[str, ...]:
    """Short fingerprints of the scans that volumes were made from, sorted."""
    return tuple(sorted(map(short_fingerprint, Records.of(training).scans)))


def volumes_of(store: Store, settings: PretrainSettings) -> Split:
    """Ids of the volumes of a store to train on and to hold out."""
    return ids_of(*split_records(store.records(), settings))


def ids_of(training: Sequence[Record], held_out: Sequence[Record]) -> Split:
    """Ids of volumes in the form of a split."""
    return {"train": Records.of(training).ids, "val": Records.of(held_out).ids}


def kept_split(
    store: Store, settings: PretrainSettings, out: Path, volumes: Split | None
) -> tuple[Records, Records]:
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
        check_channels(training + held_out, settings.store)
        return training, held_out
    places = {identity: place for place, identity in enumerate(records.ids)}
    gone = {identity for part in begun.values() for identity in part} - places.keys()
    if gone:
        raise ConfigError(
            f"{len(gone)} of the volumes that the run in {out} was started with are no longer in the store "
            f"{store.path}: ingest them again, or choose another --out."
        )
    training, held_out = (
        records.take([places[identity] for identity in begun[part]]) for part in ("train", "val")
    )
    if more := len(records) - len(training) - len(held_out):
        logger.warning(
            "%s has %d volumes that it had not when the run began; it goes on without them.", store.path, more
        )
    return training, held_out


def split_records(records: Sequence[Record], settings: PretrainSettings) -> tuple[Records, Records]:
    """Split the volumes of a store into training and held-out ones, the same way for the same seed."""
    records = Records.of(records)
    if len(records) < 2:
        raise DataError(
            f"The store {settings.store} holds {len(records)} volume(s); pretraining needs at least two, one "
            "of them to measure progress on. Add scans with `misfm ingest`."
        )
    people = of_people(records)
    parts = [split_scans(records.take(part), settings) for part in (~people, people) if part.any()]
    (training, held_out), *more = parts
    for others, others_held_out in more:
        training, held_out = training + others, held_out + others_held_out
    return training, held_out


def check_channels(records: Sequence[Record], store: str) -> None:
    """Check that volumes have the same channels, in the same order.

    Raises:
        ConfigError: names two that have not.
    """
    looks, places = Records.of(records).looks
    first = looks[0]
    for number, look in enumerate(looks):
        several = len(look.kinds) > 1
        if (
            len(look.kinds) != len(first.kinds)
            or not same_names(look.names, first.names)
            or (several and look.kinds != first.kinds)
        ):
            one, other = (
                f"{records[int(np.argmax(places == place))].case}: "
                f"{', '.join(each.names or ['?'] * len(each.kinds))} ({kinds_text(each.kinds)})"
                for place, each in ((0, first), (number, look))
            )
            raise ConfigError(
                f"The volumes of {store} have different channels ({one}; {other}): ingest them into stores "
                "of their own, or, where only the kinds differ, give --intensity one rule for each channel."
            )


def split_scans(records: Records, settings: PretrainSettings) -> tuple[Records, Records]:
    """Split volumes of one kind; those that were made of one scan stay on one side."""
    by_scan: dict[str, list[int]] = {}
    for place, scan in enumerate(records.fingerprints):
        by_scan.setdefault(scan, []).append(place)
    if len(by_scan) < 2:
        raise DataError(
            f"The {len(records)} volumes of {settings.store} were made of one scan; pretraining needs "
            "another to measure progress on."
        )
    order = torch.randperm(len(by_scan), generator=generator_for(settings.seed, "split")).tolist()
    count = min(max(1, round(settings.validation_share * len(by_scan))), len(by_scan) - 1)
    scans = list(by_scan.values())
    ordered = [scans[i] for i in order]
    training, held_out = ordered[count:], ordered[:count]
    return records.take(list(chain(*training))), records.take(list(chain(*held_out)))
