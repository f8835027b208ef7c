"""Take the results of `misfm compare` into benchmarks/results: numbers, table and plots.

python benchmarks/publish_comparison.py RUNS/comparison --name pretexts_head_neck
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from misfm.evaluation.arms import Arm
from misfm.files import write_bytes, write_json, write_text
from misfm.report.comparison import as_markdown, compare_budgets, savings
from misfm.report.figures import dice_by_labels, difference_plot, learning_curves

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the results file of a comparison, and draw from it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="--out of misfm compare")
    parser.add_argument("--name", required=True, help="of the results files")
    arguments = parser.parse_args()
    result = json.loads((arguments.comparison / "compare.json").read_text(encoding="utf-8"))
    settings = result["settings"]
    for path in ("store", "dataset"):  # where they lie on this machine is nobody's business
        settings[path] = Path(settings[path]).name
    for part in ("pretrain", "finetune"):
        settings[part] = [line for line in settings[part] if "=/" not in line]
    arms = {
        (block["network"], block["labels"]): [
            Arm(run["recipe"], [(step, dice) for step, dice in run["curve"]], run["test"], run["seed"])
            for run in block["runs"]
        ]
        for block in result["comparisons"]
    }
    pictures = []
    budgets = compare_budgets(arms)
    table = as_markdown(budgets, result["failed"])
    result["savings"] = [asdict(saving) for saving in savings(budgets)]
    write_json(RESULTS / f"{arguments.name}.json", result)
    for budget in budgets:
        stem = f"{arguments.name}_{budget.network}_{budget.labels}"
        drawings = {"steps": learning_curves(budget.arms), "difference": difference_plot(budget.comparison)}
        for kind, png in drawings.items():
            write_bytes(RESULTS / f"{stem}_{kind}.png", png)
            pictures.append(f"![{kind}]({stem}_{kind}.png)")
    for network in dict.fromkeys(budget.network for budget in budgets):
        points = {budget.labels: budget.comparison for budget in budgets if budget.network == network}
        if len(points) > 1:
            write_bytes(RESULTS / f"{arguments.name}_{network}_labels.png", dice_by_labels(points))
            pictures.append(f"![labels]({arguments.name}_{network}_labels.png)")
    write_text(RESULTS / f"{arguments.name}.md", "\n".join([table, *pictures, ""]))
    print(table)


if __name__ == "__main__":
    main()
