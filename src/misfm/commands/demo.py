"""The whole story on generated anatomy: scans -> store -> pretraining -> few labels -> masks -> report.

Everything goes through the same code a user runs. Two arms are fine-tuned on the same few cases: from
scratch, and from the short pretraining done here. The weights that ship with misfm are not among them: they
were pretrained to segment what this very generator draws.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misfm.batches import Placement
from misfm.commands.arm import read_arm, train_arm
from misfm.commands.pretrain import pretrain
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.generated import write_phantom_dataset, write_phantom_scans
from misfm.data.ingest import ingest
from misfm.data.patches import UnlabelledPatches
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.evaluation.arms import ALL, Arm, compare_arms
from misfm.files import write_json
from misfm.models import create
from misfm.pretext.volume_fusion import VolumeFusionV2
from misfm.report.figures import loss_curves
from misfm.report.html import Picture, render_report
from misfm.report.pictures import FusionSample, fusion_strip, overlay
from misfm.report.twins import twin_report
from misfm.resolve import resolve
from misfm.seeding import generator_for
from misfm.synthesis.structures import ORGAN_NAMES
from misfm.terminal import format_duration, logger
from misfm.training.run import RunFolder
from misfm.weights.file import read as read_weights

NUM_SCANS, NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 32, 4, 2, 6
PRETRAINING_STEPS, FINETUNING_STEPS = 90, 130
FINETUNING_RATE = 2e-3
"""Below that of the recipe, which is for hundreds of steps."""
PATCH_SIZE = (32, 32, 32)
INTENSITY = "ct:-200,600"
SPACING = (5.0, 5.0, 5.0)
SCRATCH = "scratch"
PRETRAINED = "pretrained here"


def run_demo(out: Path, *, seed: int) -> dict[str, Any]:
    """Run the demo, or go on with one that was stopped; writes ``results.json`` and ``report.html``.

    Args:
        out: folder for everything.
        seed: the one seed all draws come from.

    Returns:
        What ``results.json`` holds.
    """
    began = time.perf_counter()
    earlier = RunFolder(out / "pretrain")
    if earlier.config.exists() and earlier.read_settings()["seed"] != seed:
        raise ConfigError(f"{out} holds a demo with another seed: choose another --out.")
    scans, dataset, store = out / "scans", out / "Dataset001_Phantom", out / "store"
    logger.info("Generating %d scans and %d labelled cases", NUM_SCANS, NUM_TRAIN + NUM_VALIDATION + NUM_TEST)
    write_phantom_scans(scans, NUM_SCANS, seed)
    write_phantom_dataset(dataset, num_train=NUM_TRAIN + NUM_VALIDATION, num_test=NUM_TEST, seed=seed)
    write_split(dataset)
    ingest([scans], store, IngestSettings(spacing=SPACING, intensity=INTENSITY))
    logger.info("Pretraining with Volume Fusion, %d steps", PRETRAINING_STEPS)
    pretext = pretrain(pretraining_settings(store, seed), out / "pretrain", resume=True)
    arms = [finetune_arm(name, out, dataset, seed) for name in (SCRATCH, PRETRAINED)]
    seconds = time.perf_counter() - began
    result = summarise(arms, pretext, seed, seconds)
    write_json(out / "results.json", result)
    write_report(out, arms, result)
    for line in result["lines"]:
        logger.info("%s", line)
    logger.info("Report: %s  (%s)", out / "report.html", format_duration(seconds))
    return result


def write_split(dataset: Path) -> None:
    """Fix which generated cases train and which validate."""
    names = [f"phantom_tr_{i:03d}" for i in range(NUM_TRAIN + NUM_VALIDATION)]
    write_json(dataset / "splits_final.json", [{"train": names[:NUM_TRAIN], "val": names[NUM_TRAIN:]}])


def pretraining_settings(store: Path, seed: int) -> PretrainSettings:
    """Settings of a pretraining of about a minute."""
    return resolve(
        PretrainSettings,
        recipe="small",
        options={
            "store": str(store),
            "seed": seed,
            "patch_size": PATCH_SIZE,
            "validation_batches": 4,
            "training.steps": PRETRAINING_STEPS,
            "training.validate_every": PRETRAINING_STEPS // 2,
        },
    )


def finetune_arm(name: str, out: Path, dataset: Path, seed: int) -> Arm:
    """Fine-tune one arm on the labelled cases and score it on the test cases."""
    run = out / f"finetune-{name.replace(' ', '-')}"
    weights = str(out / "pretrain") if name == PRETRAINED else "none"
    logger.info("Fine-tuning: %s, %d cases, %d steps", name, NUM_TRAIN, FINETUNING_STEPS)
    settings = resolve(
        FinetuneSettings,
        recipe="small",
        options={
            "dataset": str(dataset),
            "weights": weights,
            "seed": seed,
            "network": {"name": "unet"},  # arms must not differ by what is planned for them
            "patch_size": PATCH_SIZE,
            "batch_size": 2,
            "intensity": INTENSITY,
            "spacing": SPACING,
            "training.steps": FINETUNING_STEPS,
            "training.optimizer.lr": FINETUNING_RATE,
            "augmentation.p_elastic": 0.0,  # pays only after hundreds of steps
            "training.validate_every": FINETUNING_STEPS // 2,
        },
    )
    train_arm(settings, run)
    return read_arm(name, run, seed)


def summarise(arms: list[Arm], pretext: Mapping[str, float], seed: int, seconds: float) -> dict[str, Any]:
    """Compare the arms on the test cases, and say in words what came out."""
    comparison = compare_arms(arms)
    lines = [f"{'arm':18s}" + "".join(f"{label:>14s}" for label in (*ORGAN_NAMES.values(), "mean"))]
    for name, scores in comparison.scores.items():
        labels = (*ORGAN_NAMES.values(), ALL)
        cells = [scores[label].mean if label in scores else float("nan") for label in labels]
        lines.append(f"{name:18s}" + "".join(f"{cell:14.3f}" for cell in cells))
    for name, scores in comparison.scores.items():
        difference = scores[ALL].difference if ALL in scores else None
        if difference is not None:
            lines.append(f"{name} - {SCRATCH}: mean Dice {difference}")
    lines.append(pretext_sentence(pretext))
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "pretraining": {"steps": PRETRAINING_STEPS, **pretext},
        "finetuning": {"steps": FINETUNING_STEPS, "cases": NUM_TRAIN, "test_cases": NUM_TEST},
        "comparison": asdict(comparison),
        "lines": lines,
    }


def pretext_sentence(pretext: Mapping[str, float]) -> str:
    """Say honestly how much of the pretext a minute teaches."""
    dice, chance = pretext["validation_pretext_dice"], pretext["validation_chance_dice"]
    verdict = "above chance" if dice > chance + 0.1 else "no better than chance"
    return (
        f"A pretraining of {PRETRAINING_STEPS} steps is a demonstration, not a foundation: its pretext Dice "
        f"is {dice:.2f}, {verdict} ({chance:.2f}); published runs take 80,000 steps and more. One seed."
    )


def write_report(out: Path, arms: list[Arm], result: Mapping[str, Any]) -> None:
    """Draw curves, overlays and a row of fused patches into one HTML file."""
    dataset = out / "Dataset001_Phantom"
    case = sorted(arms[0].cases)[0]
    image = read_volume(dataset / "imagesTs" / f"{case}_0000.nii.gz")
    runs = {arm.name: out / f"finetune-{arm.name.replace(' ', '-')}" for arm in arms}
    predictions = {name: read_volume(run / "predictions" / f"{case}.nii.gz") for name, run in runs.items()}
    curves = {"pretraining": out / "pretrain", **runs}
    losses = {name: loss_curve(run) for name, run in curves.items()}
    figures = [
        Picture(
            f"Test case {case}: reference and predictions.",
            overlay(image, read_volume(dataset / "labelsTs" / f"{case}.nii.gz"), predictions),
            wide=True,
        ),
        Picture(
            "Volume Fusion on generated scans, and the levels the network sees.",
            fusion_picture(out),
            wide=True,
        ),
        Picture("Training loss.", loss_curves(losses)),
    ]
    settings = {"seed": str(result["seed"]), "duration": format_duration(result["seconds"])}
    notes = [
        result["lines"][-1],
        "Generated anatomy: the numbers say that the code works, not how well patients fare.",
    ]
    page = twin_report("misfm demo", arms, figures=figures, notes=notes, settings=settings)
    render_report(page, out / "report.html")


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """Return (step, training loss) of a run."""
    return [(row["step"], row["loss"]) for row in RunFolder(run).read_metrics() if "loss" in row]


def fusion_picture(out: Path) -> bytes:
    """Fuse a few patches and let the pretrained network segment their levels."""
    settings = pretraining_settings(out / "store", seed=0)
    task = settings.pretext.build()
    if not isinstance(task, VolumeFusionV2):
        raise ConfigError("The picture of fused patches is drawn for Volume Fusion v2 only.")
    store = Store.open(out / "store")
    size = task.source_size(PATCH_SIZE)
    patches = UnlabelledPatches(store, store.records(), size, task.num_patches, 3, seed=0)
    raw = patches[0]
    backbone = create(settings.network.name, num_classes=1, patch_size=PATCH_SIZE).backbone
    network = task.build_model(backbone)
    tensors, _ = read_weights(RunFolder(out / "pretrain").weights)
    network.load_state_dict(tensors)
    samples = fused_samples(task, raw.patches, raw.placement, network)
    return fusion_strip(samples, num_levels=task.num_levels)


def fused_samples(
    task: VolumeFusionV2, raw: torch.Tensor, placement: Placement, network: nn.Module
) -> list[FusionSample]:
    """Show a batch as the network sees it; the generator repeats itself, so the parts belong together."""
    drawn = task.draw(raw, placement, PATCH_SIZE, generator_for("picture"))
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
