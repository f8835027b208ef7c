"""What `misfm demo` says with other seeds: one row each, none left out.

    python benchmarks/demo_seeds.py RUNS --seeds 0,1,2,3,4

Runs the demos that RUNS does not hold yet, three to five minutes each, and writes ``results/demo_seeds.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from misfm.files import write_text
from misfm.report.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"
HEAD = [
    *("seed", "scratch", "builtin", "builtin + VF", "builtin - scratch", "builtin + VF - scratch"),
    *("builtin + VF - builtin", "pretext Dice (chance)", "seconds"),
]


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds.split(","):
        out = arguments.runs / f"demo{seed}"
        if not (out / "results.json").exists():
            subprocess.run(["misfm", "demo", "--seed", seed, "--out", str(out)], check=True)
        rows.append(row(json.loads((out / "results.json").read_text())))
    table = "\n".join(markdown_table(HEAD, rows))
    write_text(RESULTS / "demo_seeds.md", f"{table}\n")
    print(table)


def row(result: dict[str, Any]) -> list[str]:
    """One demo: Dice of the arms on its test scans, differences with 95 % intervals, seconds."""
    scores, further = (result[key]["scores"] for key in ("comparison", "volume_fusion"))
    arms = list(scores)
    pretext = result["pretraining"]
    return [
        str(result["seed"]),
        *(f"{scores[arm]['all']['mean']:.3f}" for arm in arms),
        *(difference(scores[arm]) for arm in arms[1:]),
        difference(further[arms[2]]),
        f"{pretext['validation_pretext_dice']:.2f} ({pretext['validation_chance_dice']:.2f})",
        f"{result['seconds']:.0f}",
    ]


def difference(score: dict[str, Any]) -> str:
    """Write a difference with its interval."""
    found = score["all"]["difference"]
    low, high = found["interval"]
    return f"{found['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
