"""Twins: the same fine-tuning from pretrained and from random weights, and what the difference is worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from misfm.commands.finetune import Shared, finetune
from misfm.config import FinetuneSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.splits import read_split
from misfm.errors import ConfigError
from misfm.evaluation.arms import (
    ALL,
    PRETRAINED,
    SCRATCH,
    Arm,
    Comparison,
    compare_arms,
    dice_by_case,
    learning_curve,
)
from misfm.files import write_json
from misfm.planning.splits import SPLIT
from misfm.report.html import render_report
from misfm.report.twins import twin_report
from misfm.training.run import RunFolder

TWIN_FOLDER = "twin"


def finetune_twins(settings: FinetuneSettings, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune from ``settings.weights`` into ``out`` and from scratch into ``out/twin``, then compare.

    Everything but the weights is the same: cases, spacing, intensities, network, order of patches,
    augmentation, steps. Writes ``out/twin.json`` and ``out/report.html``.

    Returns:
        What ``twin.json`` holds.

    Raises:
        ConfigError: no weights to compare with scratch.
        MisfmError: as :func:`misfm.commands.finetune.finetune`.
    """
    if settings.weights is None:
        raise ConfigError("--twin compares pretrained weights with scratch: give --weights as well.")
    images = DatasetFingerprint.open(Dataset.open(settings.dataset), out)
    pretrained = finetune(settings, out, resume=resume, shared=Shared(images=images))
    complete = RunFolder(out).read_settings()
    alike = FinetuneSettings.model_validate({**complete, "weights": None})
    shared = Shared(read_split(out / SPLIT)[0], images, store_dir=out / "cases")
    scratch = finetune(alike, out / TWIN_FOLDER, resume=resume, shared=shared)
    arms = [
        Arm(SCRATCH, learning_curve(out / TWIN_FOLDER), dice_by_case(scratch), settings.seed),
        Arm(PRETRAINED, learning_curve(out), dice_by_case(pretrained), settings.seed),
    ]
    result: dict[str, Any] = {
        "verdict": "No validation cases, so nothing to compare; add some to the split.",
        "scratch": scratch["mean"],
        "pretrained": pretrained["mean"],
        "curves": {arm.name: list(arm.curve) for arm in arms},
    }
    if pretrained["cases"]:
        comparison = compare_arms(arms)
        result["comparison"] = asdict(comparison)
        result["verdict"] = verdict(comparison)
        report = twin_report(
            f"Fine-tuning on {Path(settings.dataset).name}: pretrained against scratch",
            arms,
            scored="validation",
            notes=[scored_note(settings)],
            settings={"weights": str(settings.weights), "steps": str(alike.training.steps)},
        )
        render_report(report, out / "report.html")
    write_json(out / "twin.json", result)
    return result


def scored_note(settings: FinetuneSettings) -> str:
    """Say what the scores are of, and what was chosen on their cases."""
    chosen = "nothing was chosen on them by this command"
    if settings.select:
        chosen = "which weights are kept and which labels cleaned up was chosen on them, in both arms alike"
    return f"Scores are of the validation cases; {chosen}."


def verdict(comparison: Comparison) -> str:
    """Say in one sentence what came out, whatever it is."""
    scratch, pretrained = (comparison.scores[name].get(ALL) for name in (SCRATCH, PRETRAINED))
    if scratch is None or pretrained is None or pretrained.difference is None:
        return "No label occurs in the validation cases or their predictions, so there is nothing to compare."
    return (
        f"Mean Dice {pretrained.mean:.3f} pretrained, {scratch.mean:.3f} from scratch; "
        f"difference {pretrained.difference}. These are {len(comparison.cases)} validation cases and one run "
        "each: other runs may differ by more than the interval, which is over cases."
    )
