"""The picture in the README: what `misfm finetune --weights builtin --twin` makes of five labelled CT.

    python benchmarks/data.py fetch DATA head-neck
    python benchmarks/readme_picture.py DATA/Dataset002_HeadNeckCT RUNS

Trains both arms with the defaults (some ten minutes on an idle core), unless RUNS has them, segments the test
cases with each, and draws the case whose difference of Dice between the arms is the median: neither the best
case nor the largest gain. Writes ``docs/images/result.png`` and, with the Dice of all cases, ``result.json``.
"""

from __future__ import annotations

import argparse
import io
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
from PIL import Image

import misfm
from misfm.report.pictures import to_display

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LABELS = 5
ARMS = {"from scratch": "twin", "pretrained (builtin)": "."}
"""Name in the picture, and folder in the run."""
COLOURS = ("#cc79a7", "#f0e442", "#56b4e9", "#009e73", "#e69f00")
"""Of labels 1 to 5; after Okabe and Ito, told apart by colour-blind readers."""
INK, PAPER = "#24292f", "white"
WINDOW_HU = (-200.0, 300.0)
MARGIN_MM = 25.0
COLUMN_INCHES, MARGINS_INCHES, DPI = 2.1, 1.08, 110

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
    write_png(draw(case, arguments.dataset, run, dice), IMAGES / "result.png")
    kept = {
        "dataset": arguments.dataset.name,
        "steps": num_steps(run),
        "training_cases": json.loads((run / "split.json").read_text(encoding="utf-8"))["train"],
        "case": case,
        "mean": {arm: round(float(np.mean(list(cases.values()))), 4) for arm, cases in dice.items()},
        "dice": {arm: {name: round(cases[name], 4) for name in sorted(cases)} for arm, cases in dice.items()},
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
        given = ("--predictions", run / "predictions", "--references", dataset / "labelsTs")
        command("evaluate", *given, "--out", scored)
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
    paths = {"reference": dataset / "labelsTs" / f"{case}.nii.gz"}
    paths |= {arm: run / folder / "predictions" / f"{case}.nii.gz" for arm, folder in ARMS.items()}
    maps = {name: to_display(misfm.read_volume(path))[0] for name, path in paths.items()}
    columns = {"scan": np.zeros_like(scan), **maps}
    cuts = slices(maps["reference"], spacing)
    ratios = [scan[cut].shape[0] * mm[0] / (scan[cut].shape[1] * mm[1]) for cut, mm in cuts]
    figure = Figure(figsize=(COLUMN_INCHES * len(columns), COLUMN_INCHES * sum(ratios) + MARGINS_INCHES))
    grid = figure.subplots(len(cuts), len(columns), height_ratios=ratios)
    for row, (cut, mm) in zip(grid, cuts, strict=True):
        for axes, labels in zip(row, columns.values(), strict=True):
            paint(axes, scan[cut], labels[cut], aspect=mm[0] / mm[1])
        for axes in row[2:]:
            for value in range(1, len(COLOURS) + 1):
                outline(axes, maps["reference"][cut] == value, "white", width=0.7)
    for axes, name in zip(grid[0], columns, strict=True):
        value = f"Dice {dice[name][case]:.3f}" if name in dice else ""
        axes.set_title(f"{name}\n{value}", color=INK, fontsize=11, pad=4)
    named = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["labels"]
    handles = [
        Patch(color=COLOURS[value - 1], label=name.replace("_", " "))
        for name, value in named.items()
        if value
    ]
    handles.append(Patch(facecolor="#606060", edgecolor="white", label="reference outline"))
    spread = {"ncols": len(handles), "handlelength": 1.3, "columnspacing": 1.4, "frameon": False}
    figure.legend(handles=handles, loc="lower center", fontsize=10, labelcolor=INK, **spread)
    cases = len(next(iter(dice.values())))
    height = figure.get_figheight()
    figure.suptitle(
        f"Head-neck CT after {num_steps(run):,} steps on {LABELS} labelled scans; "
        f"test case {case}, median of {cases} by gain",
        color=INK,
        fontsize=11,
        y=1 - 0.06 / height,
    )
    figure.subplots_adjust(0.005, 0.36 / height, 0.995, 1 - 0.72 / height, wspace=0.02, hspace=0.02)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write a picture of 256 colours, which is a third the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor=PAPER)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def slices(truth: NDArray[Any], spacing: tuple[float, float, float]) -> list[tuple[Any, tuple[float, float]]]:
    """The axial and the sagittal slice with most labelled voxels, cropped around these."""
    cuts = []
    for axis in (0, 2):
        sides = [other for other in range(3) if other != axis]
        index = int((truth > 0).sum(axis=tuple(sides)).argmax())
        cut: list[Any] = [index, index, index]
        for number, side in enumerate(sides):
            where = np.flatnonzero((truth.take(index, axis) > 0).any(axis=1 - number))
            reach = round(MARGIN_MM / spacing[side])
            cut[side] = slice(max(int(where[0]) - reach, 0), int(where[-1]) + 1 + reach)
        cuts.append((tuple(cut), (spacing[sides[0]], spacing[sides[1]])))
    return cuts


def paint(axes: Axes, scan: NDArray[Any], labels: NDArray[Any], *, aspect: float) -> None:
    """A slice, and its labels in colour."""
    low, high = WINDOW_HU
    grey = np.clip((scan - low) / (high - low), 0, 1)[..., None].repeat(3, -1)
    axes.imshow(grey, aspect=aspect, interpolation="bilinear")
    for value, colour in enumerate(COLOURS, start=1):
        mask = (labels == value).astype(float)
        fill = np.zeros((*mask.shape, 4))
        fill[..., :3], fill[..., 3] = to_rgb(colour), 0.45 * mask
        axes.imshow(fill, aspect=aspect, interpolation="nearest")
        outline(axes, mask, colour, width=1.2)
    axes.set_axis_off()


def outline(axes: Axes, mask: NDArray[Any], colour: str, *, width: float) -> None:
    """The border of a label in a slice."""
    if mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=width)


if __name__ == "__main__":
    main()
