"""Does pretraining pay with five labels? Twins on head-neck CT, over seeds, scored on the test cases.

Every (arm, seed) is a resumable run of its own; results of what is finished are written after each.

    python benchmarks/head_neck.py --dataset DIR/Dataset002_HeadNeckCT --out RUNS \\
        --arm scratch= --arm pretrained=PRETRAINING/weights.safetensors --seeds 0,1,2 --steps 1500

The first arm is the baseline. Spacing, intensities, network, patch and batch are given here, so that all arms
share them. An arm may
differ in settings, too, and settings are to be chosen on the validation cases alone:

    python benchmarks/head_neck.py ... --name why_pretrained --validation-only \\
        --arm scratch= --arm "low rate=builtin,training.optimizer.lr=5e-4"
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misfm.config import FinetuneSettings, resolve
from misfm.evaluation.arms import Arm, compare_arms
from misfm.files import write_json, write_text
from misfm.recipes.evaluate import evaluate
from misfm.recipes.finetune import finetune
from misfm.recipes.predict import predict_files
from misfm.recipes.twins import dice_by_case, learning_curve
from misfm.report.html import render_report
from misfm.report.twins import twin_report

OVERLAP = 0.25
"""Of the windows, half the default: a third of the time, for both arms alike."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=WEIGHTS[,KEY=VALUE]...")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--labels", default="5", help="key of fewshot.json in the dataset")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--name", default="head_neck", help="name of the results files")
    parser.add_argument("--validation-only", action="store_true", help="leave the test cases alone")
    parser.add_argument("--summary-only", action="store_true", help="only read what is finished")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arms: list[Arm] = []
    for seed in (int(text) for text in arguments.seeds.split(",")):
        for arm in arguments.arm:
            name, _, weights = arm.partition("=")
            run = arguments.out / f"{name.replace(' ', '-')}-{arguments.steps}-seed{seed}"
            result = run / ("validation.json" if arguments.validation_only else "test.json")
            if not result.exists():
                if arguments.summary_only:
                    continue
                train_and_test(arguments, weights, seed, run)
            scores = json.loads(result.read_text(encoding="utf-8"))
            arms.append(Arm(name, learning_curve(run), dice_by_case(scores), seed))
    order = [arm.partition("=")[0] for arm in arguments.arm]
    write_results(sorted(arms, key=lambda arm: (order.index(arm.name), arm.seed)), arguments)


def train_and_test(arguments: argparse.Namespace, start: str, seed: int, run: Path) -> None:
    """Fine-tune one arm with one seed, and score it on the test cases unless they are to be left alone."""
    weights, *assignments = start.split(",")
    few = json.loads((arguments.dataset / "fewshot.json").read_text(encoding="utf-8"))
    settings = resolve(
        FinetuneSettings,
        recipe="small",
        options={
            "dataset": str(arguments.dataset),
            "weights": weights or None,
            "cases": few[arguments.labels],
            "seed": seed,
            "network": {"name": "unet"},
            "patch_size": [40, 40, 40],
            "batch_size": 2,
            "spacing": [3.0, 4.0, 4.0],
            "intensity": "ct:-200,600",
            "overlap": OVERLAP,
            "training.steps": arguments.steps,
            "training.validate_every": arguments.validate_every,
        },
        assignments=assignments,
    )
    finetune(settings, run, resume=True)
    if arguments.validation_only:
        return
    predict_files(str(run), [arguments.dataset / "imagesTs"], run / "predictions", overlap=OVERLAP)
    evaluate(run / "predictions", arguments.dataset / "labelsTs", run / "test.json")


def write_results(arms: list[Arm], arguments: argparse.Namespace) -> None:
    """Write the comparison as JSON, markdown and a report."""
    comparison = compare_arms(arms)
    result: dict[str, Any] = {
        "labels": int(arguments.labels),
        "steps": arguments.steps,
        "comparison": asdict(comparison),
        "runs": [{"arm": arm.name, "seed": arm.seed, "curve": arm.curve, "test": arm.cases} for arm in arms],
    }
    write_json(RESULTS / f"{arguments.name}.json", result)
    labels = list(comparison.scores[comparison.baseline])
    lines = [f"| arm | seeds | {' | '.join(labels)} | difference of the mean to {comparison.baseline} |"]
    lines.append("|" + "---|" * (len(labels) + 3))
    for name, scores in comparison.scores.items():
        cells = [f"{scores[label].mean:.3f}" for label in labels]
        paired = scores["all"].difference
        gap = "" if paired is None else f"{paired}, p {paired.p_value:.3f}"
        lines.append(f"| {name} | {len(comparison.seeds[name])} | {' | '.join(cells)} | {gap} |")
    lines += ["", "Mean validation Dice while training (mean of the seeds):", ""]
    steps = sorted({step for arm in arms for step, _ in arm.curve})
    lines.append(f"| arm | {' | '.join(str(step) for step in steps)} |")
    lines.append("|" + "---|" * (len(steps) + 1))
    for name in comparison.scores:
        curves = [dict(arm.curve) for arm in arms if arm.name == name]
        means = [sum(c.get(step, float("nan")) for c in curves) / len(curves) for step in steps]
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    text = "\n".join(lines) + "\n"
    write_text(RESULTS / f"{arguments.name}.md", text)
    render_report(twin_report("Head-neck CT with few labels", arms), arguments.out / f"{arguments.name}.html")
    print(text)


if __name__ == "__main__":
    main()
