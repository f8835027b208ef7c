"""Evaluate: a folder of predictions against a folder of references, written as one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misfm.evaluation.evaluate import Progress, evaluate_folders
from misfm.files import write_json
from misfm.parallel import pool


def evaluate(
    predictions_dir: Path | str,
    references_dir: Path | str,
    out_path: Path | str,
    *,
    tolerance_mm: float | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score predictions and write the result.

    Args:
        predictions_dir: label maps ``CASE.nii.gz``.
        references_dir: label maps of the same names.
        out_path: the JSON file to write; nothing is written if anything fails.
        tolerance_mm: of the surface Dice; by default the voxel diagonal of each reference.
        workers: processes on this machine; up to 1 works in this one.
        scheduler: address of a Dask scheduler to use instead, whose workers see the same files.
        progress: called with the number of cases done and their total.

    Returns:
        What the file holds; see `misfm.evaluation.evaluate.evaluate_folders`.

    Raises:
        DataError: unusable input, or a file that cannot be written.
        ConfigError: more workers than this machine has any use for.
    """
    folders = Path(predictions_dir).absolute(), Path(references_dir).absolute()
    with pool(workers, scheduler) as workplace:
        result = evaluate_folders(*folders, tolerance_mm=tolerance_mm, progress=progress, workplace=workplace)
    write_json(Path(out_path), result)
    return result
