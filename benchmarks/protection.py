"""False and right alarms: what real scans are taken for, and what is said of them to weights of other scans.

    python benchmarks/protection.py DATA

Writes ``benchmarks/results/protection.json`` and ``.md``. For each group of scans in DATA: how many are taken
for CT, and of how many that is doubted. For weights trained on all, or on five, training cases of each of two
datasets: of how many scans of each group something is said, by what it is about. Nothing is trained: weights
know scans by :class:`misfm.data.appearance.ScanRanges` only. Also the seconds that the comparison takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from misfm.data.appearance import Appearance, appearance_of, ranges_of
from misfm.data.intensity import Kind
from misfm.data.preprocess import canonical, content_box
from misfm.data.readers import read_volume
from misfm.data.splits import read_split
from misfm.inference.fitness import misfits
from misfm.weights import NetworkInfo, WeightsInfo

HEAD_NECK, HIPPOCAMPUS = "Dataset002_HeadNeckCT", "Dataset001_Hippocampus"
GROUPS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "head and neck, val": ("ct", (f"{HEAD_NECK}/imagesTr/VAL",)),
    "head and neck, test": ("ct", (f"{HEAD_NECK}/imagesTs/*",)),
    "head and neck, unlabelled": ("ct", ("unlabelled/head_neck_ct/*",)),
    "other CT": ("ct", ("body/*ct.nii.gz", "body/ts_cta_3mm.nii.gz", "dicom/abdomen_ct_j2k")),
    "hippocampus, val": ("mr", (f"{HIPPOCAMPUS}/imagesTr/VAL",)),
    "hippocampus, test": ("mr", (f"{HIPPOCAMPUS}/imagesTs/*",)),
    "hippocampus, unlabelled": ("mr", ("unlabelled/hippocampus/*",)),
    "other MR": (
        "mr",
        (
            "body/ts_mr.nii.gz",
            "brain_t1/images/*",
            "spinal_cord/t1w.nii.gz",
            "spinal_cord/t2.nii.gz",
            "spinal_cord/t2s.nii.gz",
            "dicom/head_t1_rotated_iop",
        ),
    ),
}
ABOUT = {"HU": "intensities", "looks like CT": "intensities", "voxels are": "spacing", "mm of the": "extent"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    weights = {
        f"{title}, {count}": trained_on(data / folder, kind, count)
        for title, folder, kind in (("head and neck", HEAD_NECK, "ct"), ("hippocampus", HIPPOCAMPUS, "mr"))
        for count in ("all", "5")
    }
    rows = [
        measure(name, kind, paths_of(data, patterns), weights) for name, (kind, patterns) in GROUPS.items()
    ]
    results = Path(__file__).parent / "results"
    (results / "protection.json").write_text(json.dumps(rows, indent=1) + "\n")
    (results / "protection.md").write_text(table(rows, list(weights)))
    print(table(rows, list(weights)))


def paths_of(data: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The scans of a group; VAL stands for the validation cases of the first fold."""
    paths: list[Path] = []
    for pattern in patterns:
        if pattern.endswith("VAL"):
            folder = data / pattern.split("/")[0]
            names = read_split(folder / "splits_final.json")[0]["val"]
            paths += [folder / "imagesTr" / f"{name}_0000.nii.gz" for name in names]
        else:
            paths += sorted(data.glob(pattern))
    return paths


def trained_on(dataset: Path, kind: Kind, count: str) -> WeightsInfo:
    """Describe weights as a fine-tuning on training cases would."""
    names = read_split(dataset / "splits_final.json")[0]["train"]
    if count != "all":
        names = json.loads((dataset / "fewshot.json").read_text())[count]
    grids, seen = [], list[Appearance]()
    for name in names:
        upright = canonical(read_volume(dataset / "imagesTr" / f"{name}_0000.nii.gz"))
        box = content_box(upright, [kind])
        grids.append((upright.spacing, [n * s for n, s in zip(box.size, upright.spacing, strict=True)]))
        seen.append(appearance_of(upright.data))
    return WeightsInfo(
        network=NetworkInfo(name="unet"),
        in_channels=1,
        num_classes=2,
        patch_size=(32, 32, 32),
        spacing=None,
        intensity={"kind": kind},
        steps=0,
        data=None,
        scan_ranges=ranges_of(grids, [seen]),
    )


def measure(name: str, kind: Kind, paths: list[Path], weights: dict[str, WeightsInfo]) -> dict[str, Any]:
    """What a group of scans is taken for, and what is said of its scans."""
    taken = doubted = 0
    said: dict[str, Counter[str]] = {title: Counter() for title in weights}
    seconds = []
    for path in paths:
        volume = read_volume(path)
        seen = appearance_of(volume.data)
        taken += ("ct" if seen.is_ct else "mr") == kind
        doubted += bool(seen.doubt)
        for title, info in weights.items():
            start = time.perf_counter()
            found = misfits(volume, [None], info)
            seconds.append(time.perf_counter() - start)
            about = {topic for word, topic in ABOUT.items() for one in found if word in one}
            said[title].update(["anything"] if found else [])
            said[title].update(about)
    return {
        "group": name,
        "scans": len(paths),
        "taken_for_what_they_are": taken,
        "doubted": doubted,
        "said": {title: dict(counts) for title, counts in said.items()},
        "seconds": {"median": round(sorted(seconds)[len(seconds) // 2], 3), "most": round(max(seconds), 3)},
    }


def table(rows: list[dict[str, Any]], titles: list[str]) -> str:
    """Rows as Markdown."""
    head = ["scans", "number", "taken for what they are", "doubted", *(f"said to {t}" for t in titles)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["group"], row["scans"], row["taken_for_what_they_are"], row["doubted"]]
        for title in titles:
            counts = dict(row["said"][title])
            total = counts.pop("anything", 0)
            parts = ", ".join(f"{topic} {count}" for topic, count in sorted(counts.items()))
            cells.append(f"{total} ({parts})" if parts else str(total))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    seconds = max(row["seconds"]["most"] for row in rows)
    return (
        "Made by `python benchmarks/protection.py DATA`: scans of which something is said to weights that "
        f"were trained on others, by topic. A comparison takes {seconds:.1f} s at the most.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
