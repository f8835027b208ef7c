"""Fine-tunings that differ in their start or in a setting, on validation cases: what defaults are chosen by.

Every (arm, seed) is a resumable run of its own; results of what is finished are written after each.
``DATA`` is made by ``benchmarks/data.py``.

    python benchmarks/arms.py --dataset DATA/Dataset002_HeadNeckCT --out RUNS --name elastic \\
        --arm base= --arm "elastic=,augmentation.p_elastic=0.3" \\
        --arm pretrained=PRETRAINING/weights.safetensors --set "patch_size=[40,40,40]"

The first arm is the baseline, unless another is named. What is given with ``--set`` is shared by all; give
spacing, intensity and patch where an arm starts from weights, which have their own. With ``--draws`` each
seed has labelled cases of its own, no case in two of them until all were used, so that intervals also tell
what other cases would have given. An arm with ``labels=10`` beside ``--labels 5`` has those of two seeds and
is trained for the first of them. Runs from scratch that the results file ``--known`` holds with the same
settings and cases are taken from there; their steps are compared, not how often they were validated.
With ``--keep`` arms stay in the results that an earlier call left there and that are not given again.
The test cases are left alone, unless ``--test`` asks for their scores, once nothing is to be chosen any more.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from misfm.commands.arm import SCORES, read_arm, score_test_cases
from misfm.commands.finetune import finetune
from misfm.config import FinetuneSettings
from misfm.data.dataset import Dataset
from misfm.evaluation.arms import Arm, compare_arms
from misfm.files import write_json, write_text
from misfm.planning.fill_defaults import fill_flips
from misfm.planning.splits import choose_cases, nested_subset
from misfm.report.comparison import curve_table
from misfm.report.markdown import markdown_table
from misfm.resolve import resolve
from misfm.training.run import RunFolder

RESULTS = Path(__file__).parent / "results"
LABELS = "labels="


def main() -> None:
    """Train the arms and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=WEIGHTS[,KEY=VALUE]...")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all arms")
    parser.add_argument("--baseline", help="arm that the others are compared with; by default the first")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--labels", type=int, default=5, help="cases to train on")
    parser.add_argument(
        "--draws", action="store_true", help="other cases for each seed, instead of those of fewshot.json"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--name", required=True, help="of the results files")
    parser.add_argument("--test", action="store_true", help="score the test cases")
    parser.add_argument("--known", help="results to take runs from scratch from, by name")
    parser.add_argument("--keep", action="store_true", help="arms of the results so far that are not given")
    parser.add_argument("--summary-only", action="store_true", help="only read what is finished")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arms: list[Arm] = []
    labelled: dict[tuple[str, int], tuple[str, ...]] = {}
    known = runs_from_scratch(arguments)
    for seed in (int(text) for text in arguments.seeds.split(",")):
        for arm in arguments.arm:
            name, _, weights = arm.partition("=")
            unit = "draw" if arguments.draws else "seed"
            run = arguments.out / f"{name.replace(' ', '-')}-{arguments.steps}-{unit}{seed}"
            settings = settings_of(arguments, weights, seed)
            if settings is None:
                continue
            assert isinstance(settings.cases, tuple)
            if found := known.get((name, seed, settings.cases)):
                arms.append(found)
                labelled[name, seed] = settings.cases
                continue
            if (run / "validation.json").exists():
                flips = fill_flips(settings.augmentation, Dataset.open(settings.dataset))
                RunFolder(run).require(settings.model_copy(update={"augmentation": flips}))
            elif arguments.summary_only:
                continue
            else:
                finetune(settings, run, resume=True)
            scored = SCORES if arguments.test else "validation.json"
            if not (run / scored).exists() and arguments.summary_only:
                continue
            if not (run / scored).exists():
                score_test_cases(settings, run)
            arms.append(read_arm(name, run, seed, scored))
            labelled[name, seed] = settings.cases
    if arguments.keep:
        for kept, start, cases in kept_runs(arguments):
            arms.append(kept)
            labelled[kept.name, kept.seed] = cases
            if kept.name not in given_arms(arguments):
                arguments.arm.append(f"{kept.name}={start}")
    order = list(given_arms(arguments))
    write_results(sorted(arms, key=lambda arm: (order.index(arm.name), arm.seed)), labelled, arguments)


def runs_from_scratch(arguments: argparse.Namespace) -> dict[tuple[str, int, tuple[str, ...]], Arm]:
    """Runs of the known results that arms without weights would repeat, by name, seed and labelled cases.

    That the code trains as it did then is for the caller to know: repeat one run, and compare.
    """
    if arguments.known is None:
        return {}
    given = given_arms(arguments)
    return {
        (run.name, run.seed, cases): run
        for run, start, cases in results_of(arguments.known, arguments)
        if start == without_folders(given.get(run.name, "?")) and not start.partition(",")[0]
    }


def kept_runs(arguments: argparse.Namespace) -> list[tuple[Arm, str, tuple[str, ...]]]:
    """Runs of the results so far whose arms are not given again."""
    if not (RESULTS / f"{arguments.name}.json").exists():
        return []
    given = given_arms(arguments)
    return [found for found in results_of(arguments.name, arguments) if found[0].name not in given]


def results_of(name: str, arguments: argparse.Namespace) -> list[tuple[Arm, str, tuple[str, ...]]]:
    """Each run of results, with its start and its labelled cases; settings must be those asked for."""
    known = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    for key, value in setting_of_results(arguments).items():
        if known.get(key) != value:
            raise SystemExit(f"{name} has another '{key}' than is asked for, or says nothing of it.")
    return [
        (
            Arm(run["arm"], tuple((step, score) for step, score in run["curve"]), run["cases"], run["seed"]),
            known["arms"][run["arm"]],
            tuple(run["labelled"]),
        )
        for run in known["runs"]
    ]


def given_arms(arguments: argparse.Namespace) -> dict[str, str]:
    """Weights and assignments of each arm, by its name."""
    return {name: start for name, _, start in (arm.partition("=") for arm in arguments.arm)}


def without_folders(start: str) -> str:
    """Weights and assignments of an arm, as results name them."""
    return re.sub(r"[^,]*/", "", start)


def setting_of_results(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a results file share."""
    return {
        "dataset": arguments.dataset.name,
        "labels": arguments.labels,
        "steps": arguments.steps,
        "scored": "test" if arguments.test else "validation",
        "shared": arguments.set,
    }


def settings_of(arguments: argparse.Namespace, start: str, seed: int) -> FinetuneSettings | None:
    """Settings of one arm with one seed; None where an earlier seed has the same cases already."""
    weights, *assignments = re.split(r",(?=[\w.]+=)", start)
    more = [text.removeprefix(LABELS) for text in assignments if text.startswith(LABELS)]
    count = int(more[0]) if more else arguments.labels
    if arguments.draws and seed * arguments.labels % count:
        return None
    assignments = [text for text in assignments if not text.startswith(LABELS)]
    return resolve(
        FinetuneSettings,
        recipe="small",
        options={
            "dataset": str(arguments.dataset),
            "weights": weights or "none",
            "cases": labelled_cases(arguments, seed, count),
            "seed": seed,
            "training.steps": arguments.steps,
            "training.validate_every": arguments.validate_every,
        },
        assignments=["training.patience=null", *arguments.set, *assignments],
    )


def labelled_cases(arguments: argparse.Namespace, seed: int, count: int) -> list[str]:
    """Names of the cases to train on: the same for all seeds, or other ones of a shuffled order for each."""
    if not arguments.draws:
        few = json.loads((arguments.dataset / "fewshot.json").read_text(encoding="utf-8"))
        return list(few[str(count)])
    settings = resolve(FinetuneSettings, recipe="small", options={"dataset": str(arguments.dataset)})
    training, _ = choose_cases(Dataset.open(arguments.dataset), settings)
    names = [case.name for case in training]
    first = seed % (len(names) // arguments.labels) * arguments.labels
    before = nested_subset(names, first) if first else []
    return sorted(set(nested_subset(names, first + count)) - set(before))


def write_results(
    arms: list[Arm], labelled: dict[tuple[str, int], tuple[str, ...]], arguments: argparse.Namespace
) -> None:
    """Write the comparison as JSON and markdown."""
    given = given_arms(arguments)
    comparison = compare_arms(arms, baseline=arguments.baseline or next(iter(given)))
    result: dict[str, Any] = {
        **setting_of_results(arguments),
        "known": arguments.known,
        "arms": {name: without_folders(given[name]) for name in comparison.scores},
        "comparison": asdict(comparison),
        "runs": [
            {
                "arm": arm.name,
                "seed": arm.seed,
                "labelled": labelled[arm.name, arm.seed],
                "curve": arm.curve,
                "cases": arm.cases,
            }
            for arm in arms
        ],
    }
    write_json(RESULTS / f"{arguments.name}.json", result)
    labels = list(comparison.scores[comparison.baseline])
    rows = []
    for name, scores in comparison.scores.items():
        cells = [f"{scores[label].mean:.3f}" for label in labels]
        paired = scores["all"].difference
        gap = "" if paired is None else f"{paired}, p {paired.p_value:.3f}"
        rows.append((name, len(comparison.seeds[name]), *cells, gap))
    heads = ("arm", "seeds", *labels, f"difference of the mean to {comparison.baseline}")
    lines = markdown_table(heads, rows)
    scored = "test" if arguments.test else "validation"
    if arguments.draws:
        lines += ["", *draw_table(arms, labelled, comparison.baseline)]
    lines += ["", f"Dice of {scored} cases. Mean validation Dice while training:", "", *curve_table(arms)]
    text = "\n".join(lines) + "\n"
    write_text(RESULTS / f"{arguments.name}.md", text)
    print(text)


def draw_table(arms: list[Arm], labelled: dict[tuple[str, int], tuple[str, ...]], baseline: str) -> list[str]:
    """Difference to the baseline by its labelled cases, and the mean over these choices with a t interval.

    Few choices make bootstrap intervals too narrow; this one knows how few they are, but takes the test cases
    as given. Seeds with the same labelled cases are averaged first.
    """
    runs = {(arm.name, arm.seed): arm for arm in arms}
    rows = []
    for name in dict.fromkeys(arm.name for arm in arms):
        by_choice: dict[tuple[str, ...], list[float]] = {}
        for arm in arms:
            if arm.name == name != baseline and (twin := runs.get((baseline, arm.seed))):
                difference = compare_arms([twin, arm], baseline=baseline).scores[name]["all"].difference
                assert difference is not None
                by_choice.setdefault(labelled[baseline, arm.seed], []).append(difference.mean)
        gaps = np.array([np.mean(values) for values in by_choice.values()])
        if len(gaps) > 1:
            half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
            cells = [", ".join(f"{gap:+.3f}" for gap in gaps)]
            cells.append(f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]")
            rows.append((name, *cells))
    return markdown_table(("arm", "by choice of labelled cases", "mean [95 %, t over choices]"), rows)


if __name__ == "__main__":
    main()
