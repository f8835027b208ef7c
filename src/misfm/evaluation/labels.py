"""Label maps from files, and what the values in them mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from misfm.data.case_notes import parse_annotated
from misfm.data.dataset_json import parse_labels, read_dataset_json
from misfm.data.readers import read_volume, stem
from misfm.errors import DataError
from misfm.evaluation.case import label_values
from misfm.evaluation.metrics import LabelMap
from misfm.volume import Volume


@dataclass(frozen=True)
class LabelNames:
    """What the values of label maps mean.

    Attributes:
        values: name to the positive values that count as it, several for a region; background left out.
        ignore: value of voxels nobody has judged, if there are any.
        annotated: values of each label that was annotated, in the cases where not all of them were.
    """

    values: Mapping[str, tuple[int, ...]]
    ignore: int | None = None
    annotated: Mapping[str, frozenset[tuple[int, ...]]] = field(default_factory=dict)


def find_label_names(references_dir: Path) -> LabelNames | None:
    """Read label names from a ``dataset.json`` in the folder or beside it; ``None`` where there is none.

    Understands nnU-Net's ``{"liver": 1, "ignore": 2}``, with regions or without, the Decathlon's
    ``{"1": "liver"}``, and lists of the labels that were annotated in a case (see
    :mod:`misfm.data.case_notes`).

    Raises:
        DataError: the file is broken or declares something else.
    """
    places = (references_dir / "dataset.json", references_dir.resolve().parent / "dataset.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    content = read_dataset_json(path)
    scheme = parse_labels(content, path)
    if not scheme.values:
        raise DataError(f"{path} declares no label above 0; correct it, or move it away.")
    listed = parse_annotated(content, {name: code for code, name in scheme.names.items()}, path)
    annotated = {
        case: frozenset(scheme.by_code[code] for code in codes - {0}) for case, codes in listed.items()
    }
    return LabelNames(scheme.values, scheme.ignore, annotated)


def read_label_map(path: Path, names: LabelNames | None) -> Volume:
    """Read a label map; with ``names`` every value in it must be one of them.

    Raises:
        DataError: unreadable, no label map, or a value without a name.
    """
    volume = read_volume(path)
    try:
        values = label_values(volume, "file")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if names is not None:
        unknown = sorted(_values(values) - {0, *_all(names.values.values()), names.ignore})
        if unknown:
            raise DataError(
                f"{path} holds the label {unknown[0]}, which dataset.json does not declare; add it there."
            )
    return volume.with_data(values)


def annotated_labels(names: LabelNames, path: Path, reference: Volume) -> dict[str, tuple[int, ...]]:
    """Return the labels that were annotated in a reference, under their names.

    Raises:
        DataError: it holds one that was not.
    """
    annotated = names.annotated.get(stem(path))
    if annotated is None:
        return dict(names.values)
    drawn = _all(annotated)
    others = {value: name for name, own in names.values.items() for value in own if value not in drawn}
    found = [others[value] for value in _values(reference.data) if value in others]
    if found:
        raise DataError(
            f"{path} holds the label '{found[0]}', which dataset.json does not list among the "
            f"annotated_labels of {stem(path)}; add it there or correct the label map."
        )
    return {name: own for name, own in names.values.items() if tuple(sorted(own)) in annotated}


def present_labels(*label_maps: Volume) -> dict[str, tuple[int, ...]]:
    """Return the labels found in any of the label maps, under their value as a name."""
    found = set().union(*(_values(label_map.data) for label_map in label_maps)) - {0}
    return {str(value): (value,) for value in sorted(found)}


def _all(groups: Iterable[Iterable[int]]) -> set[int]:
    return {value for group in groups for value in group}


def _values(voxels: LabelMap) -> set[int]:
    return set(np.flatnonzero(np.bincount(voxels.ravel())).tolist())
