"""Looking after a store or a dataset: verify it; see which scans of a store stood aside, put one back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from misfm.data.case_files import PARTS
from misfm.data.dataset import Dataset
from misfm.data.dataset_faults import faults
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.terminal import Progress

UNCHECKED = (
    "made by an earlier misfm without checksums, so only what cannot be read was noticed; "
    "'misfm ingest' of any scan into it adds them"
)

SHALLOW = "names and headers; with --check all voxels, too"


def review(
    path: str | os.PathLike[str], *, check: bool = False, quarantine: bool = False, release: str | None = None
) -> dict[str, Any]:
    """Do one of the three with a store, or check a dataset; returns what was found, ready for JSON.

    Args:
        path: folder of the store or dataset.
        check: read all of it and verify it.
        quarantine: list the scans that stood aside.
        release: name of the scan to put back.

    Raises:
        ConfigError: there is no store, more than one was asked for, or no scan has this name.
        DataError: a damaged store, or a scan that cannot be released.
    """
    if check + quarantine + (release is not None) > 1:
        raise ConfigError("--check, --quarantine and --release are for one at a time; leave out the others.")
    folder = Path(path)
    if not (folder / "store.json").exists():
        if check and (folder / "dataset.json").exists():
            return {"kind": "dataset", **check_dataset(Dataset.open(folder), voxels=True)}
        option = "--check" if check else "--quarantine" if quarantine else "--release"
        kind = "a store or a dataset" if check else "a store"
        raise ConfigError(f"{option} is for {kind}, and {path} is none; give the folder of one.")
    if check:
        return check_store(folder)
    store = Store.open(folder)
    return list_quarantine(store) if release is None else release_scan(store, release)


def check_store(folder: Path) -> dict[str, Any]:
    """Read everything in a store and say in a sentence each what is wrong with it."""
    try:
        store = Store.open(folder)
    except DataError as error:
        return {"kind": "store", "whole": False, "faults": [str(error)]}
    faults = store.faults()
    notes = {} if store.is_checked else {"note": UNCHECKED}
    return {"kind": "store", "whole": not faults, "faults": faults, **notes}


def check_dataset(dataset: Dataset, *, voxels: bool) -> dict[str, Any]:
    """Say in a sentence each what is wrong with a dataset, by names and headers or by all voxels, too."""
    if not voxels:
        return {"faults": faults(dataset), "checked": SHALLOW}
    with Progress("Checking") as progress:
        found = faults(dataset, voxels=True, progress=progress.update)
    return {"cases": sum(len(dataset.cases(part)) for part in PARTS), "whole": not found, "faults": found}


def list_quarantine(store: Store) -> dict[str, Any]:
    """Quarantined scans with what is known of each, and whether they wait for the next ingest."""
    evidence, released = store.evidence(), {(one.source, one.stamp): one for one in store.released()}
    scans = []
    for source, reason in store.quarantined():
        known = evidence.get(source)
        facts = {} if known is None else known.model_dump(mode="json", exclude_none=True)
        release = None if known is None else released.get((source, known.stamp))
        scans.append(
            {
                "source": source,
                "reason": reason,
                **facts,
                "released": None if release is None else release.when,
            }
        )
    return {"kind": "quarantine", "scans": scans}


def release_scan(store: Store, name: str) -> dict[str, Any]:
    """Put a quarantined scan back, which the next ingest takes."""
    with Store.writing(store.path, store.settings, pseudonymous=store.pseudonymous) as writable:
        release = writable.release(name)
    return {"kind": "release", **release.model_dump(mode="json"), "next": "ingest it again, which takes it"}
