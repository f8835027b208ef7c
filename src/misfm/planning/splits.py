"""Which cases train and which validate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from misfm.config import FinetuneSettings
from misfm.data.dataset import Case, Dataset
from misfm.data.splits import Split, read_split
from misfm.errors import ConfigError, DataError, MisfmError
from misfm.files import write_checked_json
from misfm.registry import closest
from misfm.seeding import generator_for
from misfm.terminal import logger

SPLIT = "split.json"
"""In the folder of a fine-tuning: the split it was started with."""


def choose_cases(dataset: Dataset, settings: FinetuneSettings) -> tuple[list[Case], list[Case]]:
    """Return the training and the validation cases, which never overlap.

    They are those of the fold ``settings.fold`` of :func:`folds_of`. A number of cases takes the first of one
    fixed shuffled order: fewer cases are always a subset of more. Cases chosen by name leave the validation
    set, with all others of their subjects.

    Raises:
        ConfigError: unknown case names, a fold that does not exist, or a case on both sides.
        DataError: no labelled case to train on.
    """
    folds = folds_of(dataset, settings)
    if settings.fold >= len(folds):
        raise ConfigError(f"There is no fold {settings.fold}: the split has {len(folds)}.")
    names, held_out = folds[settings.fold]["train"], folds[settings.fold]["val"]
    if isinstance(settings.cases, tuple):
        names = list(dict.fromkeys(settings.cases))
        subjects = {dataset.subject(name) for name in names}
        held_out = [name for name in held_out if dataset.subject(name) not in subjects]
    elif settings.cases is not None:
        names = nested_subset(names, settings.cases)
    return find_cases(dataset, {"train": names, "val": held_out})


def find_cases(dataset: Dataset, split: Split) -> tuple[list[Case], list[Case]]:
    """Return the training and the validation cases that a split names.

    Raises:
        ConfigError: unknown case names, or a case on both sides.
        DataError: no case to train on.
    """
    cases = {case.name: case for case in dataset.cases() if case.label_path is not None}
    names, held_out = split["train"], split["val"]
    for name in (*names, *held_out):
        if name not in cases:
            raise ConfigError(f"{dataset.path} has no labelled case '{name}'; {closest(name, sorted(cases))}")
    shared = sorted(set(names) & set(held_out))
    if shared:
        raise ConfigError(f"The split trains and validates on the same case {shared[0]}: take it out of one.")
    if not names:
        raise DataError(f"{dataset.path} has no labelled case to train on.")
    return [cases[name] for name in names], [cases[name] for name in held_out]


def split_of_run(dataset: Dataset, settings: FinetuneSettings, out: Path) -> Split | None:
    """Return the split that the run in ``out`` was started with, None where there is no such run.

    A resumed run keeps it: chosen again after cases were added, it might judge the network on cases that it
    has trained on.
    """
    if not (out / SPLIT).exists():
        return None
    begun = read_split(out / SPLIT)[0]
    try:
        now = split_of(*choose_cases(dataset, settings))
    except MisfmError:
        now = None
    if now != begun:
        logger.warning(
            "%s: the cases of the dataset or the split have changed since the run began; it goes on with "
            "those it began with.",
            out / SPLIT,
        )
    return begun


def shared_split(path: Path, choose: Callable[[], Split]) -> Split:
    """Return the split that several runs share: chosen for the first of them, and kept in a file."""
    if not path.exists():
        write_checked_json(path, [choose()])
    return read_split(path)[0]


def split_of(training: Sequence[Case], held_out: Sequence[Case]) -> Split:
    """Return the names of cases."""
    return {"train": [case.name for case in training], "val": [case.name for case in held_out]}


def folds_of(dataset: Dataset, settings: FinetuneSettings) -> list[Split]:
    """Return the folds of ``settings.split``, else of the dataset's ``splits_final.json``, else drawn ones.

    Raises:
        ConfigError: a split file that is none.
        DataError: a damaged ``splits_final.json``.
    """
    given = read_split(Path(settings.split)) if settings.split is not None else dataset.splits()
    names = [case.name for case in dataset.cases() if case.label_path is not None]
    return given or draw_folds(names, dataset.subject, settings.folds)


def draw_folds(names: Sequence[str], subject: Callable[[str], str], count: int) -> list[Split]:
    """Divide subjects into folds of nearly equal size; every case validates once, all of a subject together.

    Drawn by the seed 0, so that all runs on a dataset agree. With fewer subjects than folds there are as many
    folds as subjects; a single subject trains, and nothing validates.
    """
    subjects = sorted({subject(name) for name in names})
    if len(subjects) < 2:
        return [{"train": sorted(names), "val": []}]
    order = torch.randperm(len(subjects), generator=generator_for(0, "split")).tolist()
    count = min(count, len(subjects))
    fold_of = {subjects[i]: (count * place - 1) // len(order) for place, i in enumerate(order, start=1)}
    return [
        {
            "train": sorted(name for name in names if fold_of[subject(name)] != fold),
            "val": sorted(name for name in names if fold_of[subject(name)] == fold),
        }
        for fold in range(count)
    ]


def nested_subset(names: list[str], count: int) -> list[str]:
    """Return ``count`` of the names; a smaller count gives a subset of a larger one."""
    if not 1 <= count <= len(names):
        raise ConfigError(f"--cases {count}: the split has {len(names)} training cases.")
    order = torch.randperm(len(names), generator=generator_for(0, "cases")).tolist()
    return sorted(names[i] for i in order[:count])
