"""Evaluate: a folder of predictions against a folder of references, written as one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misfm.evaluation.evaluate import Progress, evaluate_folders
from misfm.files import write_json


def evaluate(
    predictions_dir: Path | str,
    references_dir: Path | str,
    out_path: Path | str,
    *,
    tolerance_mm: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score predictions and write the result.

    Args:
        predictions_dir: label maps ``CASE.nii.gz``.
        references_dir: label maps of the same names.
        out_path: the JSON file to write; nothing is written if anything fails.
        tolerance_mm: of the surface Dice; by default the voxel diagonal of each reference.
        progress: called with the number of cases done and their total.

    Returns:
        What the file holds; see `misfm.evaluation.evaluate.evaluate_folders`.

    Raises:
        DataError: unusable input, or a file that cannot be written.
    """
    result = evaluate_folders(predictions_dir, references_dir, tolerance_mm=tolerance_mm, progress=progress)
    write_json(Path(out_path), result)
    return result
