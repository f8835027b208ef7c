"""Whether what a prediction expects of itself follows the Dice that it has, on test cases, whole and damaged.

    python benchmarks/quality.py --data DATA --dataset Dataset001_Hippocampus --run RUN... --out results/NAME

Several runs are judged one by one and as an ensemble. Estimates are fitted on the validation cases of the
dataset, as at the end of a fine-tuning, and measured on its test cases, every second of them also damaged.
Stopped, it goes on with the next case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from misfm.data.dataset import Case, Dataset
from misfm.documents import read_json
from misfm.files import write_json, write_text
from misfm.inference.load import load_predictor
from misfm.inference.predictor import Predictor, reorient
from misfm.inference.quality import Tally, expected_dice, fit_scale, mean_of, scale_of_members
from misfm.report.markdown import markdown_table
from misfm.seeding import derive_seed
from misfm.volume import Volume

DAMAGES = ("none", "noise", "blur", "spacing", "upside down")


def main() -> None:
    """Predict all cases, then write tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--damage", default=",".join(DAMAGES))
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    dataset = Dataset.open(arguments.data / arguments.dataset)
    predictors = [load_predictor(run, overlap=0.25) for run in arguments.run]
    rows: list[dict[str, Any]] = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    done = {(row["case"], row["damage"]) for row in rows}
    held_out = set(dataset.splits()[0]["val"])
    cases = [("test", case) for case in dataset.cases("Ts")]
    cases += [("validation", case) for case in dataset.cases("Tr") if case.name in held_out]
    for damage in arguments.damage.split(","):
        for part, case in cases if damage == "none" else cases[: len(dataset.cases("Ts")) : 2]:
            if (case.name, damage) not in done:
                found = judge(dataset, case, damage, predictors)
                rows += [{"part": part, "case": case.name, "damage": damage, **one} for one in found]
                write_json(
                    arguments.out, {"dataset": arguments.dataset, "runs": len(predictors), "rows": rows}
                )


def write_table(path: Path, content: dict[str, Any]) -> None:
    """Write, of each network and of all together, how estimates follow Dice, to a markdown file."""
    num_runs, rows = content["runs"], content["rows"]
    scales = [
        fit_scale(
            by_case(rows, "validation", "none", run, "estimates"), by_case(rows, "validation", "none", run)
        )
        for run in range(num_runs)
    ]
    together = scale_of_members(scales)
    lines = []
    for run, scale in enumerate([*scales, together] if num_runs > 1 else scales):
        name = f"network {run + 1}" if run < num_runs else f"all {num_runs}"
        pooled: list[tuple[float, float]] = []
        for damage in dict.fromkeys(row["damage"] for row in rows):
            measured = by_case(rows, "test", damage, run)
            estimates = by_case(rows, "test", damage, run, "estimates")
            pairs = [
                (mean_of(expected_dice(raw, scale)) or 0.0, mean_of(measured[case]) or 0.0)
                for case, raw in estimates.items()
            ]
            pooled += pairs
            lines.append((name, damage, *agreement(pairs)))
        lines.append((name, "all of these", *agreement(pooled)))
    heads = ("prediction of", "damage", "scans", "expected", "Dice", "mean error", "Spearman [95 %]")
    write_text(path, "\n".join([*markdown_table(heads, lines), ""]))


def by_case(
    rows: Sequence[dict[str, Any]], part: str, damage: str, run: int, what: str = "dice"
) -> dict[str, list[float | None]]:
    """Values of the labels of each case, of one network."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        if (row["part"], row["damage"]) == (part, damage):
            found.setdefault(row["case"], []).append(row[what][run])
    return found


def agreement(pairs: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    """Scans, mean estimate, mean Dice, mean error, and rank correlation with a bootstrap interval."""
    expected, dice_ = np.array(pairs).T
    generator = np.random.default_rng(0)
    drawn = (generator.integers(0, len(pairs), len(pairs)) for _ in range(2000))
    again = [stats.spearmanr(expected[some], dice_[some])[0] for some in drawn]
    low, high = np.nanpercentile(again, [2.5, 97.5])
    correlation = f"{stats.spearmanr(expected, dice_)[0]:.2f} [{low:.2f}, {high:.2f}]"
    error = np.abs(expected - dice_).mean()
    return str(len(pairs)), f"{expected.mean():.3f}", f"{dice_.mean():.3f}", f"{error:.3f}", correlation


def judge(
    dataset: Dataset, case: Case, damage: str, predictors: Sequence[Predictor]
) -> Iterator[dict[str, Any]]:
    """Estimates and Dice of each label of a case, of each network and of all together."""
    image, reference = dataset.read_case(case)
    assert reference is not None
    generator = np.random.default_rng(derive_seed(case.name, damage))
    damaged = DAMAGE[damage](image, generator)
    if DAMAGE[damage] is upside_down:
        reference = upside_down(reference, generator)
    members = [probabilities_of(predictor, damaged) for predictor in predictors]
    mean = np.mean(members, axis=0)
    estimates = [estimate(p) for p in [*members, mean]]
    maps = [p.argmax(axis=0) for p in [*members, mean]]
    for label in range(1, len(mean)):
        masks = [label_map == label for label_map in maps]
        wanted = reference.data[0] == label
        between = [dice(a, b) for a, b in combinations(masks[:-1], 2)]
        yield {
            "label": label,
            "estimates": [one[label - 1] for one in estimates],
            "dice": [dice(mask, wanted) for mask in masks],
            "between members": float(np.mean(between)) if between else None,
        }


def probabilities_of(predictor: Predictor, image: Volume) -> NDArray[np.float32]:
    """Class probabilities (K, D, H, W) on the image's grid; outside of the patient all is background."""
    made = predictor.probabilities(image)
    whole = np.zeros((predictor.spec.num_classes, *made.upright.shape), np.float32)
    whole[0] = 1
    inside = whole[(slice(None), *made.box.slices)]
    for start, slab in made.slabs:
        inside[:, start : start + slab.shape[1]] = slab.cpu().numpy()
    return reorient(whole, made.upright.affine, image.affine)


def estimate(probabilities: NDArray[np.float32]) -> list[float | None]:
    """Raw estimate of each label."""
    tally = Tally()
    tally.add(0, torch.from_numpy(probabilities))
    return tally.estimates()


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice of two masks; 0 where one is empty, and where both are."""
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def spread(image: Volume) -> tuple[NDArray[np.float32], float, float]:
    """Voxels as float32, and the ends of what they mostly are."""
    low, high = np.percentile(image.data, [1, 99])
    return image.data.astype(np.float32), float(low), float(high)


def with_noise(image: Volume, generator: np.random.Generator) -> Volume:
    """Gaussian noise of a tenth to a half of the contrast."""
    voxels, low, high = spread(image)
    noise = generator.normal(size=voxels.shape) * (high - low) * generator.uniform(0.1, 0.5)
    return image.with_data((voxels + noise).astype(np.float32))


def blurred(image: Volume, generator: np.random.Generator) -> Volume:
    """A Gaussian of one to three voxels."""
    sigma = [0, *[generator.uniform(1, 3)] * 3]
    return image.with_data(ndimage.gaussian_filter(image.data.astype(np.float32), sigma))


def with_bias(image: Volume, generator: np.random.Generator) -> Volume:
    """Brighter towards one side, four to twenty times as bright there as on the other."""
    voxels, low, _ = spread(image)
    direction = generator.normal(size=3)
    direction /= np.linalg.norm(direction)
    places = np.meshgrid(*[np.linspace(-1, 1, side) for side in image.shape], indexing="ij")
    field = np.exp(generator.uniform(0.7, 1.5) * sum(a * b for a, b in zip(direction, places, strict=True)))
    return image.with_data(((voxels - low) * field + low).astype(np.float32))


def with_wrong_spacing(image: Volume, generator: np.random.Generator) -> Volume:
    """A header that says half to two thirds, or one and a half to twice, of the true spacing."""
    factor = generator.uniform(1.5, 2)
    affine = image.affine.copy()
    affine[:3, :3] *= factor if generator.random() < 0.5 else 1 / factor
    return Volume(image.data, affine)


def upside_down(image: Volume, generator: np.random.Generator) -> Volume:
    """The patient on his head, which the header does not say."""
    axis = 1 + int(np.abs(image.affine[2, :3]).argmax())
    return image.with_data(np.ascontiguousarray(np.flip(image.data, axis)))


def inverted(image: Volume, generator: np.random.Generator) -> Volume:
    """Dark for bright, as in another sequence."""
    voxels, low, high = spread(image)
    return image.with_data(high + low - voxels)


DAMAGE: dict[str, Callable[[Volume, np.random.Generator], Volume]] = {
    "none": lambda image, generator: image,
    "noise": with_noise,
    "blur": blurred,
    "bias": with_bias,
    "spacing": with_wrong_spacing,
    "upside down": upside_down,
    "inverted": inverted,
}


if __name__ == "__main__":
    main()
