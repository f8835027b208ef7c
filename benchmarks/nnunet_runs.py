"""What the benchmarks that run the real nnU-Net share: a dataset of some cases, and its environment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from misfm.files import write_json


def copy_cases(dataset: Path, target: Path, names: Sequence[str]) -> None:
    """Make a dataset of some training cases of another."""
    content = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    ending = content["file_ending"]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for name in names:
        shutil.copy(dataset / "labelsTr" / f"{name}{ending}", target / "labelsTr")
        for image in channels(dataset / "imagesTr", name, ending):
            shutil.copy(image, target / "imagesTr")
    kept = {key: content[key] for key in ("channel_names", "labels", "file_ending")}
    write_json(target / "dataset.json", {**kept, "numTraining": len(names)})


def channels(folder: Path, name: str, ending: str) -> list[Path]:
    """Files of the channels of a case, in order."""
    return sorted(folder.glob(f"{name}_????{ending}"))


def environment(folders: Mapping[str, Path], *, threads: int, workers: int) -> dict[str, str]:
    """Environment variables for nnU-Net, some of which it reads when it is imported.

    Args:
        folders: by what nnU-Net keeps in them (``raw``, ``preprocessed``, ``results``, ``extTrainer``).
        threads: of PyTorch, in training and prediction.
        workers: processes that prepare batches; 0 does it in the training process.
    """
    return {
        **{f"nnUNet_{kind}": str(path) for kind, path in folders.items()},
        "nnUNet_n_proc_DA": str(workers),
        "nnUNet_def_n_proc": str(threads),
        "nnUNet_compile": "f",
        "nnUNet_wandb_enabled": "0",
        "OMP_NUM_THREADS": str(threads),
    }
