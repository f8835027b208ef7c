"""Generated anatomy in the place of scans: ``--store phantom`` pretrains without any data."""

from __future__ import annotations

import shutil
from pathlib import Path

from misfm.data.dataset import Dataset
from misfm.data.ingest import ingest_dataset
from misfm.data.phantom import write_phantom_dataset
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
    count = int(text or DEFAULT_COUNT)
    folder = out.with_name(f"{out.name}-{FOLDER}")
    finished = folder / "store"
    if not finished.exists() or len(Store.open(finished).records()) < count:
        logger.info("generating %d scans", count)
        write_phantom_dataset(folder / "dataset", num_train=count, num_test=0, seed=0)
        dataset = Dataset.open(folder / "dataset")
        ingest_dataset(dataset, dataset.cases(), finished, SETTINGS)
        shutil.rmtree(folder / "dataset")
    return Store.open(finished)
