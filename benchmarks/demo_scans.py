"""Make the scans that ship with the package and that `misfm demo` shows: hippocampus MR, about 3 MB.

    python benchmarks/demo_scans.py DATA [src/misfm/demo_scans]

DATA is made by `python benchmarks/data.py fetch DATA hippocampus`. Everything is of its training and
unlabelled parts: the validation and test cases of the studies stay unseen. Nothing is picked by what it looks
like: the demo trains on the five cases of the studies' few-label list, and takes scans of other subjects in
the order of their numbers, one of each, because intervals take test cases for independent.

Scans are kept on their own grid. What is not uint8 is scaled by one factor, so that the largest intensity
becomes 1023, and rounded to int16: in float32 it takes a third more room.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from data import FOLDERS, SPLITS, case_paths, write

NUM_VALIDATION, NUM_TEST, NUM_UNLABELLED = 2, 20, 20
FEW = "5"
"""Length of the few-label list that is trained on."""
LARGEST = 1023
"""Scaled intensities: ten bits hold more than the noise of these scans."""


def main() -> None:
    """Choose and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    package = Path(__file__).parents[1] / "src" / "misfm" / "demo_scans"
    parser.add_argument("out", type=Path, nargs="?", default=package)
    arguments = parser.parse_args()
    splits = json.loads(SPLITS.read_text(encoding="utf-8"))["hippocampus"]
    parts = choose(splits)
    dataset, unlabelled = (arguments.data / folder for folder in FOLDERS["hippocampus"])
    out = arguments.out / "Dataset001_Hippocampus"
    for part, names in parts.items():
        for name in names:
            if part == "unlabelled":
                copy(unlabelled / f"{name}.nii.gz", arguments.out / "unlabelled" / f"{name}.nii.gz")
                continue
            source = case_paths(dataset, "Tr", name)
            target = case_paths(
                arguments.out / "Dataset001_Hippocampus", "Ts" if part == "test" else "Tr", name
            )
            for kind in source:
                copy(source[kind], target[kind])
    describe(out, parts)


def subject(name: str) -> str:
    """Whose scan: the Decathlon numbers right and left of a subject 2 n - 1 and 2 n."""
    return f"g{(int(name.rsplit('_', 1)[1]) + 1) // 2:03d}"


def choose(splits: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the scans of each part; no subject is in two, and past training each has one scan."""
    training = sorted(splits["few"][FEW])
    others = one_each(splits["train"], training)
    validation, rest = others[:NUM_VALIDATION], others[NUM_VALIDATION:]
    test = rest[:NUM_TEST]
    unlabelled = one_each(splits["unlabelled"], [*training, *validation, *test])[:NUM_UNLABELLED]
    return {"train": training, "val": validation, "test": test, "unlabelled": unlabelled}


def one_each(names: Sequence[str], besides: Sequence[str]) -> list[str]:
    """The first scan of each subject that has none among ``besides``."""
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(subject(name), name)
    taken = {subject(name) for name in besides}
    return [name for owner, name in first.items() if owner not in taken]


def copy(source: Path, target: Path) -> None:
    """Write a scan or label map as integers on its own grid; the same bytes every time."""
    image = nib.load(source)
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype != np.uint8:
        voxels = np.round(voxels * (LARGEST / voxels.max())).astype(np.int16)
    small = nib.Nifti1Image(voxels, image.affine)
    small.header.set_xyzt_units("mm")
    write(target, gzip.compress(small.to_bytes(), 9, mtime=0))


def describe(dataset: Path, parts: dict[str, list[str]]) -> None:
    """Write what makes a folder a dataset."""
    labelled = [*parts["train"], *parts["val"], *parts["test"]]
    contents: dict[str, Any] = {
        "splits_final.json": [{"train": parts["train"], "val": parts["val"]}],
        "dataset.json": {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "anterior": 1, "posterior": 2},
            "numTraining": len(parts["train"]) + len(parts["val"]),
            "file_ending": ".nii.gz",
            "licence": "CC-BY-SA-4.0",
            "reference": "Medical Segmentation Decathlon, Task04 Hippocampus (Antonelli et al. 2022)",
            "subjects": {name: subject(name) for name in labelled},
        },
    }
    for name, content in contents.items():
        write(dataset / name, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
