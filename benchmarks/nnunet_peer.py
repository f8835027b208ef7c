"""nnU-Net and misfm on the same cases for the same seconds, scored on the same grids.

One call trains and scores one arm; rows of many calls add up in ``results/nnunet_peer.json`` and ``.md``, and
a finished arm is not computed again. Pin the process, so that each arm has the same cores:

    taskset -c 0 python benchmarks/nnunet_peer.py --dataset DATASET --labels 5 --seconds 800 --out RUNS
    taskset -c 0 python benchmarks/nnunet_peer.py ... --misfm [--weights builtin]

``matched`` gives both the same spacing, patch and batch size, and each plans the rest by its rules; in
``default`` each chooses all by itself. The time of a few steps is measured first, and steps = seconds / that
time; neither this nor preprocessing, validation and prediction count. nnU-Net prepares its batches in the
training process, as misfm does, so that all its work falls on the same cores. A killed call goes on from its
last checkpoint when it is repeated. DATASET is made by ``benchmarks/data.py``. Needs ``misfm[bench]`` unless
``--misfm``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import os
import re
import shutil
import time
from pathlib import Path

import torch
from nnunet_rows import KEY, Row, write_results
from nnunet_runs import copy_cases, environment

from misfm.commands.evaluate import evaluate
from misfm.commands.finetune import finetune
from misfm.commands.predict import predict_files
from misfm.config import FinetuneSettings
from misfm.data.dataset import Dataset
from misfm.evaluation.arms import dice_by_case
from misfm.files import write_json
from misfm.inference.case_work import PredictionOptions
from misfm.resolve import resolve
from misfm.training.precision import fabric_precision
from misfm.training.run import RunFolder
from misfm.weights import describe

BATCH_SIZE = 2
MEASURED_SHARE = 0.05
"""Of the budget: what measuring nnU-Net's steps may take, besides a least number of them."""
LOG_EVERY, MEASURED_STEPS = 4, 24
"""misfm's steps that are measured; the first few, up to the first row of its log, are ignored."""


def main() -> None:
    """Train and score one arm, unless that was done before, and add its row."""
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    names = json.loads((options.dataset / "fewshot.json").read_text(encoding="utf-8"))[str(options.labels)]
    arm = options.name or arm_name(options)
    part = "validation" if options.validation_only else "test"
    key = (options.dataset.name, options.labels, options.mode, arm, options.seed, options.seconds, part)
    folder = options.out / re.sub(r"[^\w.]+", "-", "-".join(map(str, key[1:-1])))
    done = folder / f"{part}-row.json"
    if not done.exists():
        scores, facts = (run_misfm if options.misfm else run_nnunet)(options, names, folder)
        row = {**dict(zip(KEY, key, strict=True)), "threads": options.threads, **facts}
        mean = {label: values["dice"] for label, values in scores["mean"].items()}
        row |= {
            "dice": mean,
            "interval95": scores["interval95"]["all"]["dice"],
            "cases": dice_by_case(scores),
        }
        write_json(done, row)
    print(write_results(json.loads(done.read_text(encoding="utf-8")), options.results))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True, help="nnU-Net-format, with a fewshot.json")
    parser.add_argument("--labels", type=int, required=True, help="key of fewshot.json: labelled cases")
    parser.add_argument("--seconds", type=int, required=True, help="of training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of nnU-Net's files")
    parser.add_argument("--mode", choices=("matched", "default"), default="matched")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing", type=floats, default=[3.0, 4.0, 4.0], help="mm, of matched arms")
    parser.add_argument("--patch-size", type=integers, default=[40, 40, 40], help="voxels, of matched arms")
    parser.add_argument("--overlap", type=float, default=0.5, help="of windows in prediction, for both")
    parser.add_argument(
        "--mirrors",
        choices=("all", "training", "none"),
        default="all",
        help="nnU-Net's: as it does; not in prediction (an eighth of the time); not at all",
    )
    parser.add_argument("--misfm", action="store_true", help="train misfm instead of nnU-Net")
    parser.add_argument("--weights", default="none", help="what misfm starts from; none: scratch")
    parser.add_argument("--intensity", default="ct:-200,600", help="rule of matched misfm arms")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of misfm")
    parser.add_argument("--name", help="of the arm, if it is not one of the usual ones")
    parser.add_argument("--validation-only", action="store_true", help="score the validation cases instead")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def floats(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def integers(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def arm_name(options: argparse.Namespace) -> str:
    if options.misfm:
        return "misfm scratch" if options.weights == "none" else "misfm pretrained"
    plain = {"all": "", "training": ", predicts without mirrors", "none": " without mirrors"}
    return f"nnU-Net{plain[options.mirrors]}"


def run_nnunet(options: argparse.Namespace, names: list[str], folder: Path) -> tuple[Row, Row]:
    """Plan, preprocess and train with nnU-Net; return scores and what else to tell."""
    prepared = options.out / f"nnunet-{options.mode}-{options.labels}"
    mirroring = options.mirrors != "none"
    trained = (
        options.out / f"nnunet-{options.mode}-{options.labels}-{options.seed}-{options.seconds}-{mirroring}"
    )
    folders = {"raw": prepared / "raw", "preprocessed": prepared / "preprocessed", "results": trained}
    os.environ.update(environment(folders, threads=options.threads, workers=1))  # planning refuses 0
    nnunet = importlib.import_module("nnunet_training")  # reads the environment as it is imported
    if not (prepared / "done.json").exists():
        shutil.rmtree(prepared, ignore_errors=True)
        copy_cases(options.dataset, folders["raw"] / nnunet.NAME, names)
        matched = (options.spacing, options.patch_size, BATCH_SIZE)
        nnunet.prepare(matched if options.mode == "matched" else None)
        write_json(prepared / "done.json", {"cases": names})
    os.environ.update(environment(folders, threads=options.threads, workers=0))
    budget = trained / "budget.json"
    if not budget.exists():
        measured = nnunet.seconds_per_step(mirroring=mirroring, at_most=MEASURED_SHARE * options.seconds)
        write_json(
            budget, {"steps": steps_within(options.seconds, measured), "measured_s_per_step": measured}
        )
    steps = json.loads(budget.read_text(encoding="utf-8"))["steps"]
    result = nnunet.train(mirroring=mirroring, steps=steps, seed=options.seed)
    plan = result.trainer.configuration_manager
    facts = {
        "trained_s": round(result.seconds, 1),
        "steps": steps,
        "s_per_step": round(result.seconds / steps, 3),
        "patch_size": [int(side) for side in plan.patch_size],
        "spacing": [float(side) for side in plan.spacing],
        "batch_size": plan.batch_size,
        "parameters": sum(parameter.numel() for parameter in result.trainer.network.parameters()),
        "precision": "float32",
        "features": list(plan.network_arch_init_kwargs["features_per_stage"]),
    }
    images, references, cases = cases_to_score(options)
    began = time.perf_counter()
    predictions = folder / f"{references.name}-predicted"
    mirrored = options.mirrors == "all"
    nnunet.predict(result.trainer, images, cases, predictions, mirrored=mirrored, overlap=options.overlap)
    facts["prediction_s"] = round(time.perf_counter() - began, 1)
    return evaluate(predictions, references, folder / f"{references.name}.json"), facts


def cases_to_score(options: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """Folder of images, folder of references and names of the cases to predict."""
    dataset = Dataset.open(options.dataset)
    if options.validation_only:
        return options.dataset / "imagesTr", options.dataset / "labelsTr", dataset.splits()[0]["val"]
    names = [case.name for case in dataset.cases("Ts")]
    return options.dataset / "imagesTs", options.dataset / "labelsTs", names


def run_misfm(options: argparse.Namespace, names: list[str], folder: Path) -> tuple[Row, Row]:
    """Fine-tune with misfm; return scores and what else to tell."""
    budget = folder / "budget.json"
    if not budget.exists():
        split = folder / "no-validation.json"
        write_json(split, [{"train": names, "val": []}])
        few = misfm_settings(
            options, names, MEASURED_STEPS, f"split={split}", f"training.log_every={LOG_EVERY}"
        )
        shutil.rmtree(folder / "measured", ignore_errors=True)
        finetune(few, folder / "measured")
        seconds, counted = training_time(folder / "measured", skip=LOG_EVERY)
        measured = seconds / counted
        write_json(
            budget, {"steps": steps_within(options.seconds, measured), "measured_s_per_step": measured}
        )
    steps = json.loads(budget.read_text(encoding="utf-8"))["steps"]
    run = folder / "run"
    if not (run / "validation.json").exists():
        finetune(misfm_settings(options, names, steps), run, resume=True)
    seconds, _ = training_time(run)
    settled, known = RunFolder(run).read_settings(), describe(run)
    precision = fabric_precision(settled["training"]["precision"])
    facts = {
        "trained_s": round(seconds, 1),
        "steps": steps,
        "s_per_step": round(seconds / steps, 3),
        "patch_size": settled["patch_size"],
        "spacing": known["spacing"],
        "batch_size": settled["batch_size"],
        "parameters": known["num_values"],
        "precision": "bfloat16" if precision == "bf16-mixed" else "float32",
        "weights": None if options.weights == "none" else options.weights,
        "settings": options.set,
    }
    if options.validation_only:
        return json.loads((run / "validation.json").read_text(encoding="utf-8")), facts
    images, references, _ = cases_to_score(options)
    began = time.perf_counter()
    predict_files(str(run), [images], folder / "predicted", PredictionOptions(options.overlap))
    facts["prediction_s"] = round(time.perf_counter() - began, 1)
    return evaluate(folder / "predicted", references, folder / "test.json"), facts


def misfm_settings(
    options: argparse.Namespace, names: list[str], steps: int, *assignments: str
) -> FinetuneSettings:
    """Recipe ``small`` for a number of steps; one validation, at the end, whose time does not count."""
    matched = {"spacing": options.spacing, "patch_size": options.patch_size, "intensity": options.intensity}
    tree = {
        "dataset": str(options.dataset),
        "weights": options.weights,
        "cases": names,
        "seed": options.seed,
        "overlap": options.overlap,
        "training.steps": steps,
        "training.validate_every": steps,
    }
    if options.mode == "matched":
        tree |= {**matched, "batch_size": BATCH_SIZE}
    given = [*options.set, *assignments]
    return resolve(FinetuneSettings, recipe="small", options=tree, assignments=given)


def training_time(run_dir: Path, skip: int = 0) -> tuple[float, int]:
    """Seconds and number of the steps after the first ``skip``, from the speed in the log."""
    settings = RunFolder(run_dir).read_settings()
    samples = settings["batch_size"] * settings["training"]["accumulate"]
    seconds, before = 0.0, 0
    for row in RunFolder(run_dir).read_metrics():
        if before >= skip:
            seconds += samples * (row["step"] - before) / row["samples_per_s"]
        before = row["step"]
    return seconds, before - skip


def steps_within(seconds: float, seconds_per_step: float) -> int:
    return max(1, math.floor(seconds / seconds_per_step))


if __name__ == "__main__":
    main()
