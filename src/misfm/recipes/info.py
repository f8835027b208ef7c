"""What a path is: a store, a dataset, a run folder or weights of whatever origin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from misfm.data.dataset import Dataset
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.training.run import RunFolder
from misfm.weights import describe
from misfm.weights.source import BUILTIN


def describe_path(path: Path) -> dict[str, Any]:
    """Describe a store, dataset, run folder or weights file, ready for JSON.

    Raises:
        DataError: there is nothing, or nothing that misfm knows.
        WeightsError: a file that is no weights file, or a damaged one.
    """
    if str(path) == BUILTIN:
        return {"kind": "weights", **describe(BUILTIN)}
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path.")
    if path.is_file():
        return {"kind": "weights", **describe(path)}
    if (path / "store.json").exists():
        return describe_store(Store.open(path))
    if (path / "dataset.json").exists():
        return describe_dataset(Dataset.open(path))
    run = RunFolder(path)
    if run.config.exists():
        return describe_run(run)
    raise DataError(f"{path} is no store, nnU-Net dataset or run folder; give one of them or a weights file.")


def describe_store(store: Store) -> dict[str, Any]:
    """Count what a store holds."""
    records = store.records()
    return {
        "kind": "store",
        "settings": store.settings.model_dump(mode="json"),
        "volumes": len(records),
        "modalities": dict(Counter(record.kind for record in records)),
        "quarantined": [{"source": source, "reason": reason} for source, reason in store.quarantined()],
        "fingerprint": store.fingerprint(),
    }


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Count what a dataset holds."""
    training = dataset.cases("Tr")
    return {
        "kind": "dataset",
        "channels": list(dataset.channel_names),
        "labels": {name: value for value, name in dataset.label_names.items()},
        "training_cases": len(training),
        "labelled_cases": sum(case.label_path is not None for case in training),
        "test_cases": len(dataset.cases("Ts")),
        "folds": len(dataset.splits()),
    }


def describe_run(run: RunFolder) -> dict[str, Any]:
    """Say how far a run is and what it was started with."""
    metrics = run.read_metrics()
    return {
        "kind": "run",
        "steps_done": metrics[-1]["step"] if metrics else 0,
        "finished": run.weights.exists(),
        "settings": run.read_settings(),
        "last_metrics": metrics[-1] if metrics else {},
        **({"weights": describe(run.weights)} if run.weights.exists() else {}),
    }
