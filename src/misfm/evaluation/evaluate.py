"""Scores of a folder of predictions against a folder of references, as one JSON-ready result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misfm.data.checks import usable
from misfm.data.readers import is_volume_name, stem
from misfm.errors import DataError
from misfm.evaluation.case import LabelScores, evaluate_case
from misfm.evaluation.labels import (
    LabelNames,
    annotated_labels,
    find_label_names,
    present_labels,
    read_label_map,
)
from misfm.evaluation.metrics import voxel_diagonal
from misfm.evaluation.summary import as_result
from misfm.inference.predictions import UNCERTAINTY, outdated
from misfm.parallel import Pool
from misfm.terminal import logger

Progress = Callable[[int, int], None]
"""Called with the number of cases done and their total."""


def evaluate_folders(
    predictions_dir: Path | str,
    references_dir: Path | str,
    *,
    tolerance_mm: float | None = None,
    labels: Mapping[str, int | Sequence[int]] | None = None,
    progress: Progress | None = None,
    workplace: Pool | None = None,
) -> dict[str, Any]:
    """Score every prediction whose case name also stands in the references folder.

    Args:
        predictions_dir: label maps ``CASE.nii.gz`` (or any other single-file format that can be read).
        references_dir: label maps of the same names, such as ``labelsTs`` of an nnU-Net dataset.
        tolerance_mm: of the surface Dice; by default the voxel diagonal of each reference.
        labels: name to value of the labels to score, several for a region; others count as background, except
            those that ``dataset.json`` says to ignore. Its lists of annotated labels hold, too.
        progress: told about every finished case.
        workplace: where cases are scored; by default in this process.

    Returns:
        ``cases[case][label]`` with ``dice``, ``hd95_mm``, ``assd_mm`` and ``surface_dice`` (``None`` where
        infinite), or ``None`` for a label absent in both or, by ``dataset.json``, not annotated; ``mean``,
        ``interval95`` and ``counts`` by label and for ``"all"`` (see `summarise`); ``tolerance_mm`` by case;
        ``missing``: cases that only one of the folders has; ``warnings``: of label maps that the
        ``predictions.json`` beside them does not list. Labels go by name where ``labels`` or a
        ``dataset.json`` in the references folder or beside it tells the names, otherwise by their value.

    Raises:
        DataError: a folder is missing or empty, ``dataset.json`` is broken, no case is in both, a file cannot
            be read, is no label map, holds a label ``dataset.json`` does not know or lists as not annotated,
            or lies on another grid than its reference.
    """
    if tolerance_mm is not None and not 0 <= tolerance_mm < np.inf:
        raise DataError(f"The surface Dice needs a tolerance of 0 mm or more, got {tolerance_mm}.")
    predictions, references = list_cases(Path(predictions_dir)), list_cases(Path(references_dir))
    if not (names := sorted(predictions.keys() & references.keys())):
        raise DataError(
            f"No case is in both folders: {predictions_dir} holds {_some(predictions)} and {references_dir} "
            f"{_some(references)}; a prediction must bear the file name of its reference."
        )
    declared = find_label_names(Path(references_dir))
    known = replace(declared or LabelNames({}), values=as_regions(labels)) if labels else declared

    complete = not labels and declared is not None
    score = partial(_score, names=known, tolerance_mm=tolerance_mm, complete=complete)
    scored: dict[str, ScoredCase] = {}
    for name, case in _scores(score, predictions, references, workplace):
        scored[name] = case
        if progress is not None:
            progress(len(scored), len(names))
    found = {label for case in scored.values() for label in case.scores}
    order = list(known.values) if known else sorted(found, key=int)
    absent: dict[str, LabelScores | None] = {} if known else dict.fromkeys(order)
    return {
        **as_result({name: absent | case.scores for name, case in scored.items()}, order),
        "tolerance_mm": {name: case.tolerance_mm for name, case in scored.items()},
        "missing": _missing(predictions, references),
        "warnings": _warnings(Path(predictions_dir), [predictions[name].name for name in names]),
    }


def as_regions(labels: Mapping[str, int | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return labels of one value or several with all of their values, which together count as the label."""
    return {name: (own,) if isinstance(own, int) else tuple(own) for name, own in labels.items()}


@dataclass(frozen=True)
class ScoredCase:
    """Scores of one case by annotated label, and the tolerance in millimetres they were computed with."""

    scores: dict[str, LabelScores | None]
    tolerance_mm: float


def list_cases(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by case name, which is the file name without its suffix.

    Raises:
        DataError: the folder is missing or holds none, or two files are of one case.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one that holds label maps such as CASE.nii.gz.")
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_volume_name(path) or path.name.startswith("."):
            continue
        name = stem(path)
        if name in cases:
            raise DataError(
                f"{folder} holds case '{name}' twice, {cases[name].name} and {path.name}; keep one."
            )
        cases[name] = path
    for name in [name for name in cases if name.removesuffix(f"_{UNCERTAINTY}") in cases.keys() - {name}]:
        del cases[name]  # beside a label map, and none itself
    if not cases:
        raise DataError(f"{folder} holds no label maps; expected files such as CASE.nii.gz.")
    return cases


class Pair(NamedTuple):
    """A case, and the files of its two label maps."""

    case: str
    prediction: Path
    reference: Path


def _scores(
    score: Callable[[Pair], ScoredCase],
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    workplace: Pool | None,
) -> Iterator[tuple[str, ScoredCase]]:
    """Yield the scores of each case that is in both folders."""
    names = sorted(predictions.keys() & references.keys())
    pairs = [Pair(name, predictions[name], references[name]) for name in names]
    for pair, case in (workplace or Pool()).map(score, pairs, _lost):
        yield pair.case, case


def _lost(pair: Pair) -> ScoredCase:
    raise DataError(
        f"{pair.prediction} ended the process that scored it, mostly for want of memory: give fewer "
        "--workers."
    )


def _score(pair: Pair, names: LabelNames | None, tolerance_mm: float | None, complete: bool) -> ScoredCase:
    """Score one case; with ``complete`` a label without a name is an error."""
    _, prediction_path, reference_path = pair
    if (
        names
        and prediction_path.name.endswith(".seg.nrrd")
        and any(len(own) > 1 for own in names.values.values())
    ):
        raise DataError(
            f"{prediction_path} numbers its segments, and regions are scored by the values of label maps: "
            "evaluate takes label maps in NIfTI here, as predict writes with --format nifti."
        )
    paths = (prediction_path, reference_path)
    prediction, reference = (read_label_map(path, names if complete else None) for path in paths)
    names = names or LabelNames(present_labels(prediction, reference))
    judged = annotated_labels(names, reference_path, reference)
    tolerance = voxel_diagonal(reference.spacing) if tolerance_mm is None else float(tolerance_mm)
    with usable(prediction_path):
        scores = evaluate_case(prediction, reference, judged, tolerance_mm=tolerance, ignore=names.ignore)
    return ScoredCase(scores, tolerance)


def _missing(predictions: Mapping[str, Path], references: Mapping[str, Path]) -> dict[str, list[str]]:
    return {
        "predictions": sorted(references.keys() - predictions.keys()),
        "references": sorted(predictions.keys() - references.keys()),
    }


def _warnings(folder: Path, masks: Sequence[str]) -> list[str]:
    stale = outdated(folder, masks)
    if stale is None:
        return []
    logger.warning("%s", stale)
    return [stale]


def _some(cases: Mapping[str, Path]) -> str:
    names = sorted(cases)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
