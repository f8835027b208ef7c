"""Which volumes of a store a pretraining learns from and which it measures progress on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from misfm.config import PretrainSettings
from misfm.data.fingerprint import short_fingerprint
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
    return tuple(sorted({short_fingerprint(record.fingerprint) for record in training}))


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
        ConfigError: the store no longer holds them all.
        DataError: too few volumes.
    """
    records = store.records()
    begun = read_split(out / VOLUMES)[0] if (out / VOLUMES).exists() else volumes
    if begun is None:
        return split_records(records, settings)
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
    order = torch.randperm(len(records), generator=generator_for(settings.seed, "split")).tolist()
    count = min(max(1, round(settings.validation_share * len(records))), len(records) - 1)
    training, held_out = [records[i] for i in order[count:]], [records[i] for i in order[:count]]
    # A label map is there at several spacings; one person is on one side.
    judged = {record.fingerprint for record in held_out}
    training = [record for record in training if record.fingerprint not in judged]
    if not training:
        raise DataError(
            f"The volumes of {settings.store} are all made of the scans that progress is measured on; add "
            "others."
        )
    return training, held_out
