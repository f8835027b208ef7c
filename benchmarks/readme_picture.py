"""The picture in the README: what `misfm finetune --weights builtin --twin` makes of five labelled CT.

    python benchmarks/data.py fetch DATA head-neck
    python benchmarks/readme_picture.py DATA/Dataset002_HeadNeckCT RUNS

Trains both arms with the defaults (some ten minutes on one core), unless RUNS has them, segments the test cases
with each, and draws the one whose difference of Dice between the arms is the median: so neither the best case
is shown nor the largest gain. Writes ``docs/images/result.png`` and, with the Dice of all cases, ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

import misfm
from misfm.report.pictures import to_display

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LABELS = 5
ARMS = {"from scratch": "twin", "from `builtin`": "."}
"""Name in the picture, and folder in the run."""
COLOURS = ("#cc79a7", "#f0e442", "#56b4e9", "#009e73", "#e69f00")
"""Of labels 1 to 5; after Okabe and Ito, told apart by colour-blind readers."""
INK, PAPER = "#24292f", "white"
WINDOW_HU = (-200.0, 300.0)
MARGIN_MM = 25.0
DPI = 110

Scores = dict[str, dict[str, float | None]]


def main() -> None:
    """Train, segment, choose the case, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path)
    arguments = parser.parse_args()
    run = arguments.runs / "picture"
    if not (run / "twin.json").exists():
        options = ["--weights", "builtin", "--cases", str(LABELS), "--twin"]
        if (run / "config.yaml").exists():
            options.append("--resume")
        command("finetune", "--dataset", arguments.dataset, "--out", run, *options)
    scores = {name: score(run / folder, arguments.dataset) for name, folder in ARMS.items()}
    dice = {arm: {case: mean(rows) for case, rows in cases.items()} for arm, cases in scores.items()}
    case = median_case(dice)
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw(case, arguments.dataset, run, dice).savefig(
        IMAGES / "result.png", dpi=DPI, facecolor=PAPER, pil_kwargs={"optimize": True}
    )
    kept = {
        "dataset": arguments.dataset.name,
        "steps": num_steps(run),
        "training_cases": json.loads((run / "split.json").read_text(encoding="utf-8"))["train"],
        "case": case,
        "mean": {arm: round(float(np.mean(list(cases.values()))), 4) for arm, cases in dice.items()},
        "dice": {arm: {case: round(value, 4) for case, value in cases.items()} for arm, cases in dice.items()},
    }
    (IMAGES / "result.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: kept[key] for key in ("case", "steps", "mean")}))


def command(*words: object) -> None:
    """Run a command of misfm as a user does."""
    subprocess.run(["misfm", *map(str, words)], check=True)


def score(run: Path, dataset: Path) -> dict[str, Scores]:
    """Segment and score the test cases with a run, unless that is done."""
    scored = run / "test.json"
    if not scored.exists():
        command("predict", "--run", run, "--input", dataset / "imagesTs", "--output", run / "predictions")
        command(
            "evaluate", "--predictions", run / "predictions", "--references", dataset / "labelsTs", "--out", scored
        )
    cases: dict[str, Scores] = json.loads(scored.read_text(encoding="utf-8"))["cases"]
    return cases


def mean(rows: Scores) -> float:
    """Mean Dice of a case over its labels."""
    return float(np.mean([row["dice"] for row in rows.values() if row["dice"] is not None]))


def median_case(dice: dict[str, dict[str, float]]) -> str:
    """The case whose difference between the two arms is the (lower) median."""
    scratch, pretrained = dice.values()
    order = sorted(scratch, key=lambda case: (pretrained[case] - scratch[case], case))
    return order[(len(order) - 1) // 2]


def num_steps(run: Path) -> int:
    """Steps that a run was trained for."""
    return int(json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])


def draw(case: str, dataset: Path, run: Path, dice: dict[str, dict[str, float]]) -> Figure:
    """An axial and a sagittal slice: scan, reference, and what both arms say."""
    scan, spacing = to_display(misfm.read_volume(dataset / "imagesTs" / f"{case}_0000.nii.gz"))
    labels = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["labels"]
    paths = {
        "scan": None,
        "reference": dataset / "labelsTs" / f"{case}.nii.gz",
        **{arm: run / folder / "predictions" / f"{case}.nii.gz" for arm, folder in ARMS.items()},
    }
    maps = {name: path and to_display(misfm.read_volume(path))[0] for name, path in paths.items()}
    truth = maps["reference"]
    assert truth is not None
    cuts = slices(truth, spacing)
    heights = [(cut[-2].stop - cut[-2].start) * mm[0] for cut, mm in cuts]
    widths = [(cut[-1].stop - cut[-1].start) * mm[1] for cut, mm in cuts]
    width = 2.05 * len(maps)
    figure = Figure(figsize=(width, width / len(maps) * sum(h / w for h, w in zip(heights, widths)) + 0.95))
    grid = figure.subplots(len(cuts), len(maps), height_ratios=[h / w for h, w in zip(heights, widths)])
    for row, (cut, mm) in zip(grid, cuts, strict=True):
        for axes, label_map in zip(row, maps.values(), strict=True):
            paint(axes, scan[cut], None if label_map is None else label_map[cut], aspect=mm[0] / mm[1])
    for axes, name in zip(grid[0], maps, strict=True):
        value = f"\nDice {dice[name][case]:.3f}" if name in dice else "\n"
        axes.set_title(f"{name}{value}", color=INK, fontsize=10, pad=4)
    handles = [
        Patch(color=colour, label=name.replace("_", " "))
        for colour, name in zip(COLOURS, [name for name, value in labels.items() if value], strict=True)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=INK, fontsize=9)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.86, bottom=0.07, wspace=0.02, hspace=0.03)
    return figure


def slices(truth: NDArray[Any], spacing: tuple[float, float, float]) -> list[tuple[Any, tuple[float, float]]]:
    """Where to cut, around what is labelled: axial through most labels, sagittal through the spine."""
    labelled = truth > 0
    box = []
    for axis in range(3):
        where = np.flatnonzero(labelled.any(axis=tuple({0, 1, 2} - {axis})))
        reach = round(MARGIN_MM / spacing[axis])
        box.append(slice(max(int(where[0]) - reach, 0), min(int(where[-1]) + 1 + reach, truth.shape[axis])))
    axial = int(labelled.sum(axis=(1, 2)).argmax())
    coronal = int(labelled.sum(axis=(0, 2)).argmax())
    return [
        ((axial, box[1], box[2]), (spacing[1], spacing[2])),
        ((box[0], coronal, box[2]), (spacing[0], spacing[2])),
    ]


def paint(axes: Axes, scan: NDArray[Any], labels: NDArray[Any] | None, *, aspect: float) -> None:
    """A slice, and its labels in colour."""
    low, high = WINDOW_HU
    grey = np.clip((scan - low) / (high - low), 0, 1)[..., None].repeat(3, -1)
    axes.imshow(grey, aspect=aspect, interpolation="bilinear")
    if labels is not None:
        for value, colour in enumerate(COLOURS, start=1):
            mask = (labels == value).astype(float)
            if mask.any():
                fill = np.zeros((*mask.shape, 4))
                fill[..., :3], fill[..., 3] = to_rgb(colour), 0.45 * mask
                axes.imshow(fill, aspect=aspect, interpolation="nearest")
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
    axes.set_axis_off()


if __name__ == "__main__":
    main()
