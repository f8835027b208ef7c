"""Evaluate: a folder of predictions against a folder of references, written as one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misfm.evaluation.evaluate import Progress, evaluate_folders
from misfm.files import write_json
from misfm.parallel import Where, pool


def evaluate(
    predictions_dir: Path | str,
    references_dir: Path | str,
    out_path: Path | str,
    *,
    tolerance_mm: float | None = None,
    where: Where | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score predictions and write the result.

    Args:
        predictions_dir: label maps ``CASE.nii.gz``.
        references_dir: label maps of the same names.
        out_path: the JSON file to write; nothing is written if anything fails.
        tolerance_mm: of the surface Dice; by default the voxel diagonal of each reference.
        where: in which processes cases are scored; by default in this one.
        progress: called with the number of cases done and their total.

    Returns:
        What the file holds; see `misfm.evaluation.evaluate.evaluate_folders`.

    Raises:
        DataError: unusable input, or a file that cannot be written.
        ConfigError: more workers than this machine has any use for.
    """
    folders = Path(predictions_dir).absolute(), Path(references_dir).absolute()
    where = where or Where()
    with pool(where.workers, where.scheduler) as workplace:
        result = evaluate_folders(*folders, tolerance_mm=tolerance_mm, progress=progress, workplace=workplace)
    write_json(Path(out_path), result)
    return result
