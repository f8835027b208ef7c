"""Results of the arms of ``nnunet_peer.py``: one row each, kept as JSON and shown as markdown."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from misfm.evaluation.arms import ALL, Arm, compare_arms
from misfm.files import write_json, write_text
from misfm.report.markdown import markdown_table

Row = dict[str, Any]
KEY = ("dataset", "labels", "mode", "arm", "seed", "seconds", "scored_on")
"""What a row is the result of."""
FACTS = ("trained_s", "steps", "s_per_step", "patch_size", "batch_size", "parameters", "precision", "threads")
INTRODUCTION = (
    "Mean Dice after training for the same seconds on the same cases and cores, each call pinned to as many "
    "cores as it has threads; batches are prepared in the training process by both. `trained s` counts the "
    "steps alone; their number was set by the time of a few steps before. Pretraining does not count."
)
BASELINE = "misfm scratch"
COLUMNS = (*KEY[1:-1], *FACTS)


def write_results(row: Row, folder: Path) -> str:
    """Put a row in the place of the one of the same run, and write all rows; return them as markdown."""
    path = folder / "nnunet_peer.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "versions": {}}
    rows = {tuple(one[name] for name in KEY): one for one in [*old["rows"], row]}
    ordered = [rows[key] for key in sorted(rows)]
    versions = {**old["versions"], **installed("misfm", "torch", "nnunetv2")}
    write_json(path, {"versions": versions, "rows": ordered})
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = ["# nnU-Net and misfm for the same time", "", f"{INTRODUCTION} {told}.", ""]
    for dataset, part in sorted({(one["dataset"], one["scored_on"]) for one in ordered}):
        chosen = [one for one in ordered if (one["dataset"], one["scored_on"]) == (dataset, part)]
        lines += [f"{dataset}, {part} cases:", "", *table(chosen), "", *differences(chosen), ""]
    text = "\n".join(lines)
    write_text(path.with_suffix(".md"), text)
    return text


def table(rows: list[Row]) -> list[str]:
    """Lines of a table of rows that share their labels."""
    labels = list(rows[0]["dice"])
    heads = [*(name.replace("_", " ") for name in COLUMNS), *labels, "95 % interval of all"]
    lines = []
    for row in rows:
        dice = ["" if row["dice"][label] is None else f"{row['dice'][label]:.3f}" for label in labels]
        interval = " to ".join(f"{end:.3f}" for end in row["interval95"] or [])
        lines.append([*(cell(row[name]) for name in COLUMNS), *dice, interval])
    return markdown_table(heads, lines)


def differences(rows: list[Row]) -> list[str]:
    """Lines of a table that compares arms of the same labels and seconds, paired by case and seed."""
    groups: dict[tuple[Any, ...], list[Arm]] = {}
    for row in rows:
        arm = Arm(row["arm"], cases=row["cases"], seed=row["seed"])
        groups.setdefault((row["labels"], row["mode"], row["seconds"]), []).append(arm)
    heads = ["labels", "mode", "seconds", "arm", "seeds", "all", f"difference to {BASELINE}, shared seeds"]
    lines = []
    for group, arms in groups.items():
        baseline = {arm.seed for arm in arms if arm.name == BASELINE}
        paired = [arm for arm in arms if arm.seed in baseline]
        if not paired:
            continue
        comparison = compare_arms(paired, baseline=BASELINE)
        for name, scores in comparison.scores.items():
            score, seeds = scores[ALL], len(comparison.seeds[name])
            cells = [*map(cell, group), name, str(seeds), f"{score.mean:.3f}", str(score.difference or "")]
            lines.append(cells)
    return markdown_table(heads, lines)


def cell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def installed(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
