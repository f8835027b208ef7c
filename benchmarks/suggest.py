"""Whether the first five labels that `misfm suggest` asks for do more than five random ones; hippocampus MR.

    python benchmarks/suggest.py DATA RUNS [--pools 0,1]

``DATA`` is made by ``benchmarks/data.py``. Pool 0 holds all training cases, the others random two thirds of
them; of each, five are chosen by features of ``builtin`` and trained on. They are compared with the random
draws of the study of few labels, which had the same settings and steps (its weights were those of which
``builtin`` is the half-precision copy). Every run can be resumed; results are written after each.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misfm.commands.arm import SCORES, score_test_cases
from misfm.commands.finetune import finetune
from misfm.commands.suggest import Eye, look
from misfm.config import FinetuneSettings
from misfm.data.dataset import Dataset
from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.files import write_json, write_text
from misfm.planning.selection import representatives, standardise
from misfm.planning.splits import SPLIT, choose_cases
from misfm.report.markdown import markdown_table
from misfm.resolve import resolve
from misfm.seeding import generator_for

RESULTS = Path(__file__).parent / "results"
KNOWN = "few_labels_draws_hippocampus"
KNOWN_ARM = "pretrained, a third of the steps"
DATASET = "Dataset001_Hippocampus"
STEPS = 667
SHARED = ("patch_size=[40,40,40]", "batch_size=2", "overlap=0.25", "spacing=[1,1,1]", "intensity=mr")


def main() -> None:
    """Choose, train, score and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--pools", default="0,1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    dataset = arguments.data / DATASET
    suggested = suggestions(dataset, arguments.runs / "store", [int(p) for p in arguments.pools.split(",")])
    known = json.loads((RESULTS / f"{KNOWN}.json").read_text(encoding="utf-8"))["runs"]
    rows = [
        {"arm": "random", "number": run["seed"], "labelled": run["labelled"], "dice": mean_dice(run["cases"])}
        for run in known
        if run["arm"] == KNOWN_ARM
    ]
    for pool, cases in suggested.items():
        out = arguments.runs / "hippocampus" / f"suggested-{STEPS}-pool{pool}"
        dice = run_arm(dataset, cases, pool, out)["mean"]["all"]["dice"]
        rows.append({"arm": "suggested", "number": pool, "labelled": cases, "dice": dice})
        write_results(rows)


def suggestions(dataset: Path, store_path: Path, pools: Sequence[int]) -> dict[int, list[str]]:
    """The five cases that `misfm suggest` asks for first, by pool."""
    settings = resolve(FinetuneSettings, recipe="small", options={"dataset": str(dataset)})
    training, _ = choose_cases(Dataset.open(dataset), settings)
    images = [case.image_paths[0] for case in training]
    ingest(images, store_path, IngestSettings(spacing=(1.0, 1.0, 1.0), intensity="mr"))
    store = Store.open(store_path)
    records = store.records()
    vectors, _ = look(store, records, Eye(None, "builtin"), None)
    found = {}
    for pool in pools:
        order = torch.randperm(len(records), generator=generator_for(pool, "pool")).tolist()
        members = sorted(order[: len(records) * 2 // 3]) if pool else range(len(records))
        picks = representatives(standardise(vectors[list(members)]), 5)
        found[pool] = sorted(records[list(members)[pick.index]].case.removesuffix("_0000") for pick in picks)
    return found


def run_arm(dataset: Path, cases: Sequence[str], seed: int, out: Path) -> dict[str, Any]:
    """Train and score on the test cases, or go on, or read what is there."""
    settings = resolve(
        FinetuneSettings,
        recipe="small",
        options={
            "dataset": str(dataset),
            "weights": "builtin",
            "cases": sorted(cases),
            "seed": seed,
            "training.steps": STEPS,
            "training.validate_every": 250,
        },
        assignments=["training.patience=null", *SHARED, "select=false"],
    )
    if not (out / "validation.json").exists():
        finetune(settings, out, resume=True)
    if not (out / SCORES).exists():
        score_test_cases(settings, out)
    scores: dict[str, Any] = json.loads((out / SCORES).read_text(encoding="utf-8"))
    assert read_split(out / SPLIT)[0]["train"] == sorted(cases)
    return scores


def mean_dice(cases: dict[str, dict[str, float | None]]) -> float:
    """Mean over cases of the mean over labels."""
    return float(
        np.mean([np.mean([one for one in row.values() if one is not None]) for row in cases.values()])
    )


def write_results(rows: list[dict[str, Any]]) -> None:
    """Write all runs, and mean and spread of both arms."""
    write_json(RESULTS / "suggest_first.json", {"dataset": DATASET, "steps": STEPS, "runs": rows})
    table = []
    for arm in ("random", "suggested"):
        dice = np.array([row["dice"] for row in rows if row["arm"] == arm])
        each = ", ".join(f"{one:.3f}" for one in dice)
        spread = f"{dice.std(ddof=1):.3f}" if len(dice) > 1 else ""
        table.append((arm, len(dice), each, f"{dice.mean():.3f}", spread))
    heads = ("five labels", "choices", "test Dice of each", "mean", "standard deviation")
    write_text(RESULTS / "suggest_first.md", "\n".join([*markdown_table(heads, table), ""]))


if __name__ == "__main__":
    main()
