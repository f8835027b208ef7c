"""Twins: the same fine-tuning from pretrained and from random weights, and what the difference is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misfm.commands.finetune import Shared, finetune
from misfm.commands.start import choose_start
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
from misfm.planning.fill_defaults import recall
from misfm.planning.splits import SPLIT
from misfm.report.html import render_report
from misfm.report.twins import twin_report
from misfm.settings import NO_WEIGHTS
from misfm.training.exclusive import in_run
from misfm.training.run import RunFolder, steps_taken

TWIN_FOLDER = "twin"


def finetune_twins(settings: FinetuneSettings, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune from ``settings.weights`` into ``out`` and from scratch into ``out/twin``, then compare.

    Everything but the weights is the same: cases, spacing, intensities, network, order of patches,
    augmentation, steps, and the patience that may end either earlier. Writes ``out/twin.json`` and
    ``out/report.html``.

    Returns:
        What ``twin.json`` holds.

    Raises:
        ConfigError: no weights to compare with scratch.
        MisfmError: as :func:`misfm.commands.finetune.finetune`.
    """
    with in_run(RunFolder(out)):
        return finetune_twins_here(settings, out, resume=resume)


def finetune_twins_here(settings: FinetuneSettings, out: Path, *, resume: bool) -> dict[str, Any]:
    """Do what :func:`finetune_twins` does, in a folder that is ours."""
    dataset = Dataset.open(settings.dataset)
    start = choose_start(recall(settings, RunFolder(out)) if resume else settings, dataset)
    if start.weights is None:
        why = f" ({start.reasons[0]})" if start.reasons else ""
        raise ConfigError(f"--twin compares pretrained weights with scratch{why}: give --weights as well.")
    images = DatasetFingerprint.open(dataset, out)
    pretrained = finetune(
        start.settings,
        out,
        resume=resume,
        reasons=start.reasons,
        shared=Shared(images=images, weights=start.weights),
    )
    complete = RunFolder(out).read_settings()
    alike = FinetuneSettings.model_validate({**complete, "weights": NO_WEIGHTS})
    shared = Shared(read_split(out / SPLIT)[0], images, store_dir=out / "cases")
    folders = {SCRATCH: out / TWIN_FOLDER, PRETRAINED: out}
    scratch = finetune(alike, folders[SCRATCH], resume=resume, shared=shared)
    steps = {name: steps_taken(RunFolder(run)) for name, run in folders.items()}
    arms = [
        Arm(name, learning_curve(folders[name]), dice_by_case(scores), settings.seed)
        for name, scores in ((SCRATCH, scratch), (PRETRAINED, pretrained))
    ]
    result: dict[str, Any] = {
        "verdict": "No validation cases, so nothing to compare; add some to the split.",
        "scratch": scratch["mean"],
        "pretrained": pretrained["mean"],
        "steps": steps,
        "curves": {arm.name: list(arm.curve) for arm in arms},
    }
    if pretrained["cases"]:
        comparison = compare_arms(arms)
        result["comparison"] = asdict(comparison)
        result["verdict"] = verdict(comparison, steps)
        report = twin_report(
            f"Fine-tuning on {Path(settings.dataset).name}: pretrained against scratch",
            arms,
            scored="validation",
            notes=[scored_note(settings)],
            settings={"weights": str(start.settings.weights), "steps": as_text(steps)},
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


def as_text(steps: Mapping[str, int]) -> str:
    """Say how many steps were taken, by each where that differs: patience ends some runs earlier."""
    if len(set(steps.values())) == 1:
        return str(next(iter(steps.values())))
    return ", ".join(f"{count} {name}" for name, count in steps.items())


def verdict(comparison: Comparison, steps: Mapping[str, int]) -> str:
    """Say in a few sentences what came out, whatever it is."""
    scratch, pretrained = (comparison.scores[name].get(ALL) for name in (SCRATCH, PRETRAINED))
    if scratch is None or pretrained is None or pretrained.difference is None:
        return "No label occurs in the validation cases or their predictions, so there is nothing to compare."
    return (
        f"Mean Dice {pretrained.mean:.3f} pretrained, {scratch.mean:.3f} from scratch; "
        f"difference {pretrained.difference}. Steps taken: {as_text(steps)}. These are "
        f"{len(comparison.cases)} validation cases and one run each: other runs may differ by more than the "
        "interval, which is over cases."
    )
