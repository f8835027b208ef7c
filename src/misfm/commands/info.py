"""What something is: a store, a dataset, a run folder, weights of whatever origin, or a known name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from misfm.commands import catalogue
from misfm.commands.review import check_dataset
from misfm.data.dataset import Dataset
from misfm.data.label_scheme import LabelScheme
from misfm.data.readers import is_volume_name
from misfm.data.records import fingerprint_of
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.training.run import RunFolder, steps_taken
from misfm.weights import describe, hub, published

PUBLISHED = "published"
"""What stands for the list of published weights, where nothing of this name exists."""


def describe_path(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a store, dataset, run folder, weights or a name that misfm knows, ready for JSON.

    Of these only an address ``hf://owner/repo`` uses a network.

    Raises:
        DataError: there is nothing, or nothing that misfm knows.
        WeightsError: a file that is no weights file, or a damaged one.
    """
    text, path = str(source), Path(source)
    if text.startswith(hub.SCHEME):
        return {"kind": "weights", **describe_weights(text)}
    if not path.exists():
        return describe_name(text)
    if path.is_file() and is_volume_name(path):
        raise DataError(f"{path} is a scan; bring it into a store by 'misfm ingest', and ask about that.")
    if path.is_file():
        return {"kind": "weights", **describe_weights(path)}
    if (path / "store.json").exists():
        return describe_store(Store.open(path))
    if (path / "dataset.json").exists():
        return describe_dataset(Dataset.open(path))
    run = RunFolder(path)
    if run.config.exists():
        return describe_run(run)
    raise DataError(f"{path} is no store, nnU-Net dataset or run folder; give one of them or a weights file.")


def describe_name(name: str) -> dict[str, Any]:
    """Describe published weights, fully where they are at hand, or what the catalogue has under a name."""
    if name == PUBLISHED:
        return {"kind": "published weights", **{entry.name: entry.summary for entry in published.WEIGHTS}}
    if name == published.BUILTIN:
        return {"kind": "weights", **describe_weights(name)}
    entry = published.by_name(name)
    if entry is None:
        known = catalogue.find(name)
        if known is None:
            names = [*(entry.name for entry in published.WEIGHTS), *catalogue.known_names()]
            near = difflib.get_close_matches(name.lower()[:100], names, n=1, cutoff=0.6)
            hint = f" (did you mean '{near[0]}'?)" if near else published.suggestion(name)
            raise DataError(f"{name} does not exist; check the path, or the name{hint}.")
        return known
    found: dict[str, Any] = {"kind": "published weights", **dataclasses.asdict(entry)}
    if not entry.on_hub:
        return found
    cached = hub.find_cached(entry.address)
    if cached is None:
        return {**found, "cached": None}
    hub.check(cached, entry.sha256)
    return {**found, "cached": str(cached), "weights": describe_weights(cached)}


def describe_weights(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe weights, with a number instead of a fingerprint of each scan seen, and labels by name."""
    found = describe(source)
    if found.get("data"):
        found["data"]["scans"] = len(found["data"]["scans"])
    singles = [own[0] for own in found.get("label_values", ())] or count()
    names = dict(zip(found.get("regions_class_order") or singles, found.get("label_names", ()), strict=False))
    if found.get("largest_part"):
        found["largest_part"] = [names.get(label, str(label)) for label in found["largest_part"]]
    return found


def describe_store(store: Store) -> dict[str, Any]:
    """Count what a store holds."""
    records = store.records()
    looks, places = records.looks
    return {
        "kind": "store",
        "settings": store.settings.model_dump(mode="json"),
        "volumes": len(records),
        "modalities": dict(Counter("+".join(looks[place].kinds) for place in places.tolist())),
        "quarantined": [{"source": source, "reason": reason} for source, reason in store.quarantined()],
        "released": [release.model_dump(mode="json") for release in store.released()],
        "fingerprint": fingerprint_of(records),
    }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Count what a dataset holds, and say what its names and headers show to be wrong."""
    training = dataset.cases("Tr")
    return {
        "kind": "dataset",
        "channels": list(dataset.channel_names),
        "labels": {dataset.label_names[0]: 0, **in_short(dataset.scheme)},
        **({"regions_class_order": dataset.scheme.order} if dataset.scheme.has_regions else {}),
        **({} if dataset.ignore_label is None else {"ignore": dataset.ignore_label}),
        "training_cases": len(training),
        "labelled_cases": sum(case.label_path is not None for case in training),
        "test_cases": len(dataset.cases("Ts")),
        "folds": _num_folds(dataset),
        **check_dataset(dataset, voxels=False),
    }


def _num_folds(dataset: Dataset) -> int:
    try:
        return len(dataset.splits())
    except DataError:  # among the faults
        return 0


def in_short(scheme: LabelScheme) -> dict[str, int | list[int]]:
    """Return the values of each label as ``dataset.json`` has them: a number, or a list for a region."""
    return {name: own[0] if len(own) == 1 else list(own) for name, own in scheme.values.items()}


def describe_run(run: RunFolder) -> dict[str, Any]:
    """Say how far a run is and what it was started with."""
    metrics = run.read_metrics()
    return {
        "kind": "run",
        "steps_done": steps_taken(run),
        "finished": run.weights.exists(),
        "settings": run.read_settings(),
        "last_metrics": metrics[-1] if metrics else {},
        **({"weights": describe_weights(run.weights)} if run.weights.exists() else {}),
    }
