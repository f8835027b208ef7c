"""Dice by number of labels, from the results of few_labels_draws.sh, and whether half of them are enough.

    python benchmarks/few_labels_table.py

Writes results/few_labels_by_count.md. The bootstrap interval of a row is over test cases and replicates of
twins. Pretrained on half of the labels is compared with scratch on all, where these are two choices of the
half: the runs of both are averaged first, and what is resampled is test cases and choices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from misfm.evaluation.arms import ALL, Arm, Comparison, compare_arms
from misfm.evaluation.savings import labels_worth
from misfm.files import write_text
from misfm.report.markdown import markdown_table

RESULTS = Path(__file__).parent / "results"
STUDIES = {"hippocampus MR": ("hippocampus", (5, 10, 40)), "head-neck CT": ("head_neck", (1, 5, 10, 20))}


def main() -> None:
    """Write both tables."""
    header = [
        "data",
        "labels",
        "replicates",
        "scratch",
        "pretrained",
        "difference [95 %]",
        "worth of scratch",
    ]
    rows: list[list[str]] = []
    closing: list[list[str]] = []
    for data, (study, counts) in STUDIES.items():
        results = {count: read(study, count) for count in counts}
        comparisons = {count: twins(result) for count, result in results.items()}
        scratch = {count: comparison.scores["scratch"][ALL].mean for count, comparison in comparisons.items()}
        for count, comparison in comparisons.items():
            pretrained = comparison.scores["pretrained"][ALL]
            worth = labels_worth(scratch, pretrained.mean)
            cells = [data, str(count), str(len(comparison.seeds["pretrained"])), f"{scratch[count]:.3f}"]
            cells += [f"{pretrained.mean:.3f}", difference(comparison)]
            cells.append(f"{worth:.1f} labels" if worth else "")
            rows.append(cells)
        for few, many in ((few, 2 * few) for few in counts if 2 * few in counts):
            half = halved(results[few], results[many])
            means = [half.scores[name][ALL].mean for name in ("scratch", "pretrained")]
            choices = f"{len(half.seeds['scratch'])} of {many} labels"
            cells = [data, choices, *(f"{mean:.3f}" for mean in means), difference(half)]
            closing.append(cells)
    halves = ("data", "choices", "scratch on all", "pretrained on halves", "difference [95 %]")
    lines = [*markdown_table(header, rows), "", *markdown_table(halves, closing)]
    text = "\n".join(lines) + "\n"
    write_text(RESULTS / "few_labels_by_count.md", text)
    print(text)


def read(study: str, count: int) -> list[tuple[Arm, frozenset[str]]]:
    """Runs of a study with so many labels, and the cases each was trained on."""
    suffix = "" if count == 5 else f"_{count}"
    path = RESULTS / f"few_labels_draws_{study}{suffix}.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [
        (
            Arm(run["arm"].partition(",")[0], run["curve"], run["cases"], run["seed"]),
            frozenset(run["labelled"]),
        )
        for run in result["runs"]
        if len(run["labelled"]) == count and "steps" not in run["arm"]
    ]


def twins(runs: list[tuple[Arm, frozenset[str]]]) -> Comparison:
    """The runs of one number of labels, pretrained against scratch."""
    return compare_arms([arm for arm, _ in runs], baseline="scratch")


def halved(few: list[tuple[Arm, frozenset[str]]], many: list[tuple[Arm, frozenset[str]]]) -> Comparison:
    """Pretrained on parts of the labels, averaged over the parts, against scratch on all of them."""
    arms = []
    for index, labelled in enumerate(dict.fromkeys(cases for _, cases in many)):
        whole = [arm for arm, cases in many if arm.name == "scratch" and cases == labelled]
        parts = [arm for arm, cases in few if arm.name == "pretrained" and cases < labelled]
        arms += [averaged(whole, index), averaged(parts, index)]
    return compare_arms(arms, baseline="scratch")


def averaged(runs: list[Arm], seed: int) -> Arm:
    """One arm with the mean Dice of several runs, case by case and label by label."""
    cases = {
        case: {
            label: float(np.mean(values)) if (values := present(runs, case, label)) else None
            for label in runs[0].cases[case]
        }
        for case in runs[0].cases
    }
    return Arm(runs[0].name, (), cases, seed)


def present(runs: list[Arm], case: str, label: str) -> list[float]:
    """Dice of a label of a case in those runs that have one."""
    return [value for run in runs if (value := run.cases[case].get(label)) is not None]


def difference(comparison: Comparison) -> str:
    """Pretrained less scratch, with its interval."""
    paired = comparison.scores["pretrained"][ALL].difference
    assert paired is not None
    assert paired.interval is not None
    return f"{paired.mean:+.3f} [{paired.interval.low:+.3f}, {paired.interval.high:+.3f}]"


if __name__ == "__main__":
    main()
