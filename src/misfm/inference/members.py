"""Which weights label together, and whether they can."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from misfm.data.channels import same_names
from misfm.data.intensity_text import intensity_text
from misfm.data.splits import read_split
from misfm.errors import ConfigError, WeightsError
from misfm.weights import WeightsInfo
from misfm.weights.file import FILE_NAME
from misfm.weights.source import Opened, Source

FOLDS = "folds.json"
"""In the folder of a cross-validation: what each fold trains and validates on, in the form of a split."""
SHARED = {
    "patch_size": "patch",
    "spacing": "spacing",
    "rules": "intensity rules",
    "in_channels": "number of channels",
    "num_classes": "number of classes",
    "label_names": "label names",
    "label_values": "label values",
    "regions_class_order": "order of regions",
}
"""Fields of a description in which the members of an ensemble agree, in words."""


def members_of(weights_or_runs: Source | Sequence[Source]) -> list[Source]:
    """Return each source of weights by itself; the folder of a cross-validation stands for all its folds.

    Raises:
        ConfigError: nothing is given.
        WeightsError: a cross-validation that is not finished.
    """
    if isinstance(weights_or_runs, (str, os.PathLike, Mapping, Opened)):
        weights_or_runs = [weights_or_runs]
    found = [member for source in weights_or_runs for member in expand(source)]
    if not found:
        raise ConfigError("Nothing to predict with: give at least one run folder or weights file.")
    return found


def expand(source: Source) -> list[Source]:
    """Return the folds of a cross-validation, or the source itself where it is anything else.

    Folds may also have been trained one by one, into a folder of their own (``fold_0``, ``fold_1``, …).
    """
    if isinstance(source, (Mapping, Opened)) or (Path(source) / FILE_NAME).exists():
        return [source]
    splits = read_split(Path(source) / FOLDS) if (Path(source) / FOLDS).exists() else []
    folds = {
        *Path(source).glob("fold_*"),
        *(Path(source) / f"fold_{number}" for number in range(len(splits))),
    }
    in_order = sorted(folds, key=lambda fold: (len(fold.name), fold.name))
    for fold in in_order:
        if not (fold / FILE_NAME).exists():
            raise WeightsError(
                f"{fold} holds no {FILE_NAME} yet: finish the cross-validation with --resume, or name the "
                "folds to use with --run, one by one."
            )
    return list(in_order) or [source]


def check_compatible(source: Source, info: WeightsInfo, first_source: Source, first: WeightsInfo) -> None:
    """Check that a member takes the same windows of the same scans as the first, and means the same by them.

    Raises:
        ConfigError: names what differs.
    """
    for field, words in SHARED.items():
        own, expected = getattr(info, field), getattr(first, field)
        if own != expected:
            if field == "rules":
                own, expected = intensity_text(own), intensity_text(expected)
            raise ConfigError(
                f"{source} and {first_source} differ in their {words} ({own} and {expected}) and cannot "
                "label together: predict with each alone."
            )
    if not same_names(info.channel_names, first.channel_names):
        own, expected = (", ".join(one.channel_names) for one in (info, first))
        raise ConfigError(
            f"{source} and {first_source} differ in their channels or the order of these ({own} and "
            f"{expected}) and cannot label together: predict with each alone."
        )
