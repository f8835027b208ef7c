"""The whole story on real scans: unlabelled scans -> pretraining -> few labels -> masks -> report.

The scans ship with the package, and everything goes through the same code a user runs. Three arms are
fine-tuned on the same few cases: from scratch, from the weights that ship with misfm, and from these taken
further by a short Volume Fusion on the demo's unlabelled scans. They are scored on scans of other people.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misfm.commands.arm import read_arm, train_arm
from misfm.commands.demo_report import demo_page, draw_figures, outcome
from misfm.commands.pretrain import LEARNT, pretrain
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.demo_scans import DATASET, UNLABELLED, copy_demo_scans
from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.errors import ConfigError
from misfm.evaluation.arms import SCRATCH, Arm, compare_arms
from misfm.files import write_json
from misfm.report.html import render_report
from misfm.resolve import resolve
from misfm.terminal import format_duration, logger
from misfm.training.exclusive import as_begun, exclusive
from misfm.training.run import LOCK, RunFolder
from misfm.weights import describe

PRETRAINING_STEPS, FINETUNING_STEPS = 300, 100
PRETRAINING_PATCH, PATCH_SIZE = (32, 32, 32), (32, 40, 32)
VOLUME_FUSION = {
    "num_levels": 2,
    "block_size": [[8, 16]] * 3,
    "min_difference": 0.02,
    "p_inversion": 0.0,
    "views": {"p_flip": 0.0},
}
"""As in the recipe, but for blocks that suit these small scans, and two levels instead of four, which a
minute does not teach the network to tell apart."""
INTENSITY, SPACING = "mr", (1.0, 1.0, 1.0)
BUILTIN, FURTHER = "builtin", "builtin + Volume Fusion here"
ARMS = {SCRATCH: "finetune-scratch", BUILTIN: "finetune-builtin", FURTHER: "finetune-volume-fusion"}
"""Name and folder of each arm, the baseline first."""
CAVEAT = (
    f"One seed and minutes: {FINETUNING_STEPS} steps of fine-tuning favour pretrained weights; trained to "
    "the plateau, the lead shrinks to about 0.01 Dice (docs/results.md)."
)


def run_demo(out: Path, *, seed: int) -> dict[str, Any]:
    """Run the demo, or go on with one that was stopped; writes ``results.json`` and ``report.html``.

    Args:
        out: folder for everything.
        seed: the one seed all draws come from.

    Returns:
        What ``results.json`` holds.
    """
    with exclusive(out), as_begun(RunFolder(out / "pretrain")):
        return run_demo_here(out, seed=seed)


def run_demo_here(out: Path, *, seed: int) -> dict[str, Any]:
    """Do what :func:`run_demo` does, in a folder that is ours."""
    began = time.perf_counter()
    earlier = RunFolder(out / "pretrain")
    if earlier.config.exists() and earlier.read_settings()["seed"] != seed:
        raise ConfigError(f"{out} holds a demo with another seed: choose another --out.")
    refuse_others(out)
    copy_demo_scans(out / "scans")
    ingest([out / "scans" / UNLABELLED], out / "store", IngestSettings(spacing=SPACING, intensity=INTENSITY))
    logger.info("Pretraining: Volume Fusion from %s, %d steps", BUILTIN, PRETRAINING_STEPS)
    settings = pretraining_settings(out / "store", seed)
    pretext = pretrain(settings, out / "pretrain", resume=True)
    arms = [finetune_arm(name, out, seed) for name in ARMS]
    seconds = time.perf_counter() - began
    result = summarise(arms, pretext, seed, seconds)
    write_json(out / "results.json", result)
    figures = draw_figures(out, {name: out / folder for name, folder in ARMS.items()}, arms, settings)
    render_report(demo_page(arms, result, figures), out / "report.html")
    logger.info("Report: %s  (%s)", out / "report.html", format_duration(seconds))
    for line in result["lines"]:
        logger.info("%s", line)
    return result


def refuse_others(out: Path) -> None:
    """Refuse a folder that holds something else than a demo.

    Raises:
        ConfigError: such a folder.
    """
    known = {"scans", "store", "pretrain", *ARMS.values(), "results.json", "report.html", LOCK}
    others = sorted({path.name for path in out.iterdir()} - known) if out.is_dir() else []
    if others:
        raise ConfigError(f"{out} holds something else, such as {others[0]}: choose another --out.")


def pretraining_settings(store: Path, seed: int) -> PretrainSettings:
    """Settings of a pretraining of about a minute."""
    return resolve(
        PretrainSettings,
        recipe="small",
        options={
            "store": str(store),
            "weights": BUILTIN,
            "seed": seed,
            "pretext": {"name": "volume-fusion-v2", "options": VOLUME_FUSION},
            "patch_size": PRETRAINING_PATCH,
            "validation_batches": 8,
            "training.steps": PRETRAINING_STEPS,
            "training.validate_every": PRETRAINING_STEPS,
        },
    )


def finetune_arm(name: str, out: Path, seed: int) -> Arm:
    """Fine-tune one arm on the labelled cases and score it on the test cases."""
    logger.info("Fine-tuning: %s, %d steps", name, FINETUNING_STEPS)
    settings = resolve(
        FinetuneSettings,
        recipe="small",
        options={
            "dataset": str(out / "scans" / DATASET),
            "weights": {SCRATCH: "none", BUILTIN: BUILTIN, FURTHER: str(out / "pretrain")}[name],
            "seed": seed,
            "network": describe(BUILTIN)["network"],  # scratch must not get another one
            "patch_size": PATCH_SIZE,
            "batch_size": 2,
            "intensity": INTENSITY,
            "spacing": SPACING,
            "training.steps": FINETUNING_STEPS,
            "training.validate_every": FINETUNING_STEPS // 2,
            "augmentation.p_elastic": 0.0,  # pays only after hundreds of steps
        },
    )
    train_arm(settings, out / ARMS[name])
    return read_arm(name, out / ARMS[name], seed)


def summarise(arms: Sequence[Arm], pretext: Mapping[str, float], seed: int, seconds: float) -> dict[str, Any]:
    """Compare the arms on the test cases, and say in words what came out, the outcome last."""
    comparison, further = compare_arms(arms), compare_arms(arms[1:])
    labels = list(comparison.scores[SCRATCH])
    lines = [f"{'arm':30s}" + "".join(f"{label:>12s}" for label in labels)]
    for name, scores in comparison.scores.items():
        cells = [f"{scores[label].mean:12.3f}" if label in scores else f"{'–':>12s}" for label in labels]
        lines.append(f"{name:30s}" + "".join(cells))
    notes = [pretext_sentence(pretext), CAVEAT]
    lines += [*notes, outcome(further, FURTHER)]
    lines += [outcome(comparison, name) for name in (FURTHER, BUILTIN)]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "pretraining": {"steps": PRETRAINING_STEPS, **pretext},
        "finetuning": {"steps": FINETUNING_STEPS, "test_cases": len(comparison.cases)},
        "comparison": asdict(comparison),
        "volume_fusion": asdict(further),
        "notes": notes,
        "lines": lines,
    }


def pretext_sentence(pretext: Mapping[str, float]) -> str:
    """Say how much of the pretext a minute teaches."""
    dice, chance = pretext["validation_pretext_dice"], pretext["validation_chance_dice"]
    verdict = "above chance" if dice > chance + LEARNT else "no better than chance"
    return (
        f"{PRETRAINING_STEPS} steps of Volume Fusion: pretext Dice {dice:.2f} on held-out scans, {verdict} "
        f"({chance:.2f})."
    )
