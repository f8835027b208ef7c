"""The end of a fine-tuning: its last and its best weights to choose from, and files of what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from torch import nn

from misfm.config import CompleteSettings
from misfm.data.record import Record
from misfm.evaluation.choice import Candidate, Choice, is_better
from misfm.evaluation.validation import SCORE
from misfm.files import write_checked_json
from misfm.models import SegmentationModel
from misfm.terminal import logger
from misfm.training.checkpoint import load_checkpoint
from misfm.training.loop import best_device
from misfm.training.run import RunFolder
from misfm.weights import WeightsInfo, save

CHOSEN = "chosen.json"
"""In the run folder: what was kept, and the numbers of all that could have been."""


def reason_not_to_choose(settings: CompleteSettings, judged: Sequence[Record]) -> str:
    """Say why the last weights are kept as they are, or nothing where there is something to choose on."""
    if not settings.select:
        return "'select' is off"
    return "" if judged else "there are no validation cases to choose on"


def candidates(
    trained: nn.Module, model: SegmentationModel, run: RunFolder, *, alone: bool
) -> list[Candidate]:
    """Return the last weights and those that did best while training, where these are others.

    Args:
        trained: what was trained, with the last weights; it holds ``model``.
        model: the network to keep.
        run: its folder.
        alone: leave out the best.
    """
    step = load_checkpoint(run.last).step
    score = next((row.get(SCORE) for row in run.read_metrics() if row["step"] == step), None)
    best = load_checkpoint(run.best) if run.best.exists() and not alone else None
    if best is None or best.step == step:
        return [Candidate("last", step, on_best_device(model), score)]
    if not is_better(best.best_score, score):
        last = Candidate("last", step, on_best_device(model), score)
        return [last, Candidate("best", best.step, None, best.best_score)]
    last = Candidate("last", step, on_best_device(deepcopy(model)), score)
    trained.load_state_dict(best.model)
    return [last, Candidate("best", best.step, on_best_device(model), best.best_score)]


def on_best_device(model: SegmentationModel) -> SegmentationModel:
    """Return a trained network ready to predict."""
    return model.keep_finest().to(best_device()).eval()


def keep(choice: Choice, info: WeightsInfo, run: RunFolder, reason: str) -> None:
    """Write what was chosen, and its scores, and say so; ``reason``: why nothing was chosen, if so."""
    kept = choice.candidate
    chosen = {} if reason else {"kept": kept.kept, "largest_part": choice.largest_part}
    known = {"steps": kept.step, "quality": choice.quality, **chosen}
    save(run.weights, choice.model, info.model_copy(update=known))
    write_checked_json(run.path / CHOSEN, {"reason": reason, **choice.account} if reason else choice.account)
    write_checked_json(run.path / "validation.json", choice.scores)
    logger.info("%s", f"kept the last weights as they are: {reason}" if reason else choice.sentence)
