"""Validation curves of fine-tunings side by side, as a table and JSON: what settings are chosen by.

python benchmarks/curves.py --name class_balance "plain=runs/plain" "root=runs/root"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from misfm.evaluation.arms import learning_curve
from misfm.files import write_json, write_text
from misfm.report.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the curves, write and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--name", required=True, help="of the results files")
    arguments = parser.parse_args()
    curves = {}
    for text in arguments.runs:
        name, _, run = text.rpartition("=")
        curves[name] = dict(learning_curve(Path(run)))
    write_json(RESULTS / f"{arguments.name}.json", {"validation_dice": curves})
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [
        (name, *(f"{curve[step]:.3f}" if step in curve else "" for step in steps))
        for name, curve in curves.items()
    ]
    lines = markdown_table(("run", *steps), rows)
    text = "\n".join(["Mean validation Dice after so many fine-tuning steps.", "", *lines, ""])
    write_text(RESULTS / f"{arguments.name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
