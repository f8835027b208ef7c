"""One arm of a comparison: fine-tune, then score on the test cases, if there are labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misfm.commands.finetune import Shared, finetune
from misfm.commands.predict import predict_files
from misfm.config import FinetuneSettings
from misfm.evaluation.arms import Arm, dice_by_case, learning_curve, read_scores
from misfm.evaluation.evaluate import evaluate_folders
from misfm.files import write_checked_json
from misfm.inference.case_work import PredictionOptions

SCORES = "test.json"
"""In the folder of an arm: its scores."""


def train_arm(settings: FinetuneSettings, out: Path, *, shared: Shared | None = None) -> dict[str, Any]:
    """Fine-tune into ``out``, or go on there, and score what came of it.

    Args:
        settings: of the fine-tuning.
        out: the run folder; gets ``predictions`` and ``test.json``, too.
        shared: as for :func:`misfm.commands.finetune.finetune`.

    Returns:
        Scores of the labelled test cases in the form of ``misfm evaluate``; of the validation cases where the
        dataset has no labelled test cases.

    Raises:
        MisfmError: as :func:`misfm.commands.finetune.finetune`.
    """
    scores = finetune(settings, out, resume=True, shared=shared)
    if (Path(settings.dataset) / "labelsTs").is_dir():
        return score_test_cases(settings, out)
    write_checked_json(out / SCORES, scores)
    return scores


def score_test_cases(settings: FinetuneSettings, out: Path) -> dict[str, Any]:
    """Predict and score the labelled test cases with a finished run; returns what ``test.json`` holds."""
    dataset = Path(settings.dataset)
    predict_files(str(out), [dataset / "imagesTs"], out / "predictions", PredictionOptions(settings.overlap))
    scores = evaluate_folders(out / "predictions", dataset / "labelsTs")
    write_checked_json(out / SCORES, scores)
    return scores


def read_arm(name: str, out: Path, seed: int, file: str = SCORES) -> Arm:
    """Return the learning curve and the scores of a finished arm; ``file`` holds the scores."""
    return Arm(name, learning_curve(out), dice_by_case(read_scores(out / file)), seed)
