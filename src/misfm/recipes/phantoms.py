"""Generated anatomy in the place of scans: ``--store phantom`` pretrains without any data."""

from __future__ import annotations

import shutil
from pathlib import Path

from misfm.data.dataset import Dataset
from misfm.data.ingest import ingest_dataset
from misfm.data.phantom import TO_PRETRAIN_ON, write_phantom_dataset
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.training.logging import logger

PREFIX = "phantom"
DEFAULT_COUNT = 200
FOLDER = "phantoms"
"""Appended to the name of the run folder, beside which the generated store lies."""
SETTINGS = IngestSettings(spacing="native", intensity="ct:-200,600")


def is_generated(store: str) -> bool:
    """Whether the name of a store asks for generated anatomy."""
    return store.partition(":")[0] == PREFIX and not Path(store).exists()


def open_store(store: str, out: Path) -> Store:
    """Open a store, or generate one with label maps beside the run; generated once, and the same every time.

    Raises:
        DataError: no store there.
        ConfigError: ``phantom:`` followed by anything but a number of two or more.
    """
    if not is_generated(store):
        return Store.open(store)
    _, _, text = store.partition(":")
    if not (text or str(DEFAULT_COUNT)).isdecimal() or int(text or DEFAULT_COUNT) < 2:
        raise ConfigError(f"--store {PREFIX}:COUNT takes a number of two or more, got '{text}'.")
    return generate(int(text or DEFAULT_COUNT), out, SETTINGS)


def generate_beside(scans: Store, count: int, out: Path) -> Store:
    """Generate volumes to learn from together with scans, their intensities prepared by the same rule.

    Raises:
        ConfigError: the scans have several channels, or are CT and MR, and generated anatomy is neither.
    """
    records = scans.records()
    kinds = {record.kind for record in records}
    if len(kinds) > 1 or any(record.channels > 1 for record in records):
        raise ConfigError(
            "Generated anatomy goes with scans of one channel and one kind, CT or MR: ingest them into "
            "stores of their own, or take another pretext task."
        )
    rule = scans.settings.intensity
    intensity = kinds.pop() if rule == "auto" else rule
    return generate(count, out, IngestSettings(spacing="native", intensity=intensity))


def generate(count: int, out: Path, settings: IngestSettings) -> Store:
    """Generate at least ``count`` volumes into a store beside the run, unless they are there.

    Raises:
        ConfigError: those that are there, from an earlier run of that name, have other intensities.
    """
    folder = out.with_name(f"{out.name}-{FOLDER}")
    store = Store.create(folder / "store", settings)
    if len(store.records()) < count:
        logger.info("generating %d scans", count)
        write_phantom_dataset(
            folder / "dataset", num_train=count, num_test=0, seed=0, settings=TO_PRETRAIN_ON
        )
        dataset = Dataset.open(folder / "dataset")
        ingest_dataset(dataset, dataset.cases(), store.path, settings)
        shutil.rmtree(folder / "dataset")
    return store
