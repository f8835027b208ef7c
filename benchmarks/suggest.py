"""Whether labels that `misfm suggest` asks for do more than labels of randomly chosen scans; hippocampus MR.

    python benchmarks/suggest.py DATA RUNS

``DATA`` is made by ``benchmarks/data.py``. Runs are alike in all but their labelled cases: five that are
chosen by features of ``builtin``, of all training cases and of random two thirds, against the five of each
random draw of the study of few labels, with the same steps.

Every run can be resumed; results of what is finished are written after each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misfm.commands.arm import SCORES, score_test_cases
from misfm.commands.finetune import finetune
from misfm.config import FinetuneSettings
from misfm.resolve import resolve

RESULTS = Path(__file__).parent / "results"
DATASET = "Dataset001_Hippocampus"
STEPS = 667
SHARED = ("patch_size=[40,40,40]", "batch_size=2", "overlap=0.25", "spacing=[1,1,1]", "intensity=mr")
LABELS = 5


def settings_of(dataset: Path, cases: Sequence[str], seed: int) -> FinetuneSettings:
    """Settings of a run on these cases; those of the study of few labels, a third of the steps."""
    return resolve(
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


def run_arm(dataset: Path, cases: Sequence[str], seed: int, out: Path) -> dict[str, Any]:
    """Train and score on the test cases, or go on, or read what is there."""
    settings = settings_of(dataset, cases, seed)
    if not (out / "validation.json").exists():
        finetune(settings, out, resume=True)
    if not (out / SCORES).exists():
        score_test_cases(settings, out)
    scores: dict[str, Any] = json.loads((out / SCORES).read_text(encoding="utf-8"))
    return scores
