"""What ``misfm demo`` shows: the outcome in words, a median test case, and Volume Fusion at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from misfm.batches import Placement
from misfm.config import PretrainSettings
from misfm.data.demo_scans import DATASET
from misfm.data.patches import UnlabelledPatches
from misfm.data.readers import read_volume
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.evaluation.arms import ALL, Arm, Comparison, compare_arms
from misfm.models import create
from misfm.planning.volumes import kept_split
from misfm.pretext.volume_fusion import VolumeFusionV2
from misfm.report.figures import loss_curves
from misfm.report.html import Picture, ReportData
from misfm.report.pictures import FusionSample, fusion_strip, overlay
from misfm.report.twins import twin_report, verdicts
from misfm.seeding import derive_seed, generator_for
from misfm.terminal import format_duration
from misfm.training.run import RunFolder
from misfm.weights.file import read as read_weights

NUM_FUSED = 3
"""Samples of Volume Fusion in their picture."""


def outcome(comparison: Comparison, name: str) -> str:
    """Say in a sentence where an arm stands against the baseline on the test cases."""
    score, base = comparison.scores[name][ALL], comparison.scores[comparison.baseline][ALL]
    difference = score.difference
    if difference is None:
        return f"{name}: mean Dice {score.mean:.3f}."
    interval = difference.interval
    place = "level with"
    if interval is not None and (interval.low > 0 or interval.high < 0):
        place = "ahead of" if interval.low > 0 else "behind"
    return (
        f"{name} is {place} {comparison.baseline}: Dice {score.mean:.3f} against {base.mean:.3f}, "
        f"{difference}; better on {difference.cases_ahead} of {difference.cases} test scans."
    )


def demo_page(arms: Sequence[Arm], result: Mapping[str, Any], figures: Sequence[Picture]) -> ReportData:
    """Lay out the page, the outcome first.

    Args:
        arms: scratch, the weights that ship with misfm, and these taken further.
        result: what ``results.json`` holds.
        figures: pictures.
    """
    settings = {"seed": str(result["seed"]), "duration": format_duration(result["seconds"])}
    notes = [
        *result["notes"],
        "The test scans are of other people than those trained on, one scan each. They are from the training "
        "part of a public data set: these are no results of that data set's test.",
    ]
    page = twin_report("misfm demo: real scans, few labels", arms, notes=notes, settings=settings)
    further = verdicts(compare_arms(arms[1:]))
    return replace(page, verdicts=(*page.verdicts, *further), figures=(*figures, *page.figures))


def draw_figures(
    out: Path, runs: Mapping[str, Path], arms: Sequence[Arm], settings: PretrainSettings
) -> list[Picture]:
    """Draw a median test case, the fusion of held-out scans, and losses.

    Args:
        out: folder of the demo.
        runs: run folder of each arm.
        arms: what is compared, the baseline first.
        settings: of the pretraining.
    """
    case = median_case(arms)
    dataset = out / "scans" / DATASET
    image = read_volume(dataset / "imagesTs" / f"{case}_0000.nii.gz")
    reference = read_volume(dataset / "labelsTs" / f"{case}.nii.gz")
    predictions = {
        f"{arm.name}\nDice {mean_dice(arm, case):.2f}": read_volume(
            runs[arm.name] / "predictions" / f"{case}.nii.gz"
        )
        for arm in arms
    }
    losses = {name: loss_curve(run) for name, run in runs.items()}
    return [
        Picture(
            f"Test scan {case}, on which {arms[1].name} has its median lead over {arms[0].name}: reference "
            "and predictions.",
            overlay(image, reference, predictions),
            wide=True,
        ),
        Picture(
            "Volume Fusion of held-out scans, the levels to find, and those that the network finds.",
            fusion_picture(out, settings),
            wide=True,
        ),
        Picture("Volume Fusion: training loss.", loss_curves({"pretraining": loss_curve(out / "pretrain")})),
        Picture("Fine-tuning: training loss.", loss_curves(losses)),
    ]


def median_case(arms: Sequence[Arm]) -> str:
    """The test case on which the second arm's lead over the first is the median of all."""
    base, other = arms[0], arms[1]
    cases = sorted(base.cases, key=lambda case: mean_dice(other, case) - mean_dice(base, case))
    return cases[len(cases) // 2]


def mean_dice(arm: Arm, case: str) -> float:
    """Dice of a case, mean over the labels that have one."""
    return fmean(dice for dice in arm.cases[case].values() if dice is not None)


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """Return (step, training loss) of a run."""
    return [(row["step"], row["loss"]) for row in RunFolder(run).read_metrics() if "loss" in row]


def fusion_picture(out: Path, settings: PretrainSettings) -> bytes:
    """Fuse patches of held-out scans and let the pretrained network segment their levels."""
    task = settings.pretext.build()
    if not isinstance(task, VolumeFusionV2):
        raise ConfigError("The picture of fused patches is drawn for Volume Fusion v2 only.")
    run, store = RunFolder(out / "pretrain"), Store.open(settings.store)
    _, held_out = kept_split(store, settings, run.path, None)
    tensors, info = read_weights(run.weights)
    backbone = create(
        info.network.name, num_classes=1, patch_size=settings.patch_size, **info.network.options
    ).backbone
    network = task.build_model(backbone)
    network.load_state_dict(tensors)
    size, seed = task.source_size(settings.patch_size), derive_seed(settings.seed, "picture")
    raw = UnlabelledPatches(store, held_out, size, task.num_patches, NUM_FUSED, seed)[0]
    samples = fused_samples(task, raw.patches, raw.placement, network, settings)
    return fusion_strip(samples, num_levels=task.num_levels)


def fused_samples(
    task: VolumeFusionV2,
    raw: torch.Tensor,
    placement: Placement,
    network: nn.Module,
    settings: PretrainSettings,
) -> list[FusionSample]:
    """Show a batch as the network sees it."""
    drawn = task.draw(raw, placement, settings.patch_size, generator_for(settings.seed, "picture"))
    foreground, background, levels, _ = drawn
    batch = task.fused_batch(*drawn)
    with torch.inference_mode():
        predicted = network.eval()(batch.inputs).max(1).indices
    return [
        FusionSample(*(part.numpy() for part in parts))
        for parts in zip(
            foreground[:, 0], background[:, 0], batch.inputs[:, 0], levels, predicted, strict=True
        )
    ]
