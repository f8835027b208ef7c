"""The tiny scans, datasets, networks and settings that all fault campaigns work on."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import misfm.models
from misfm import weights
from misfm.data.generated import write_phantom_dataset, write_phantom_scans
from misfm.data.writers import write_label_map
from misfm.files import write_json
from misfm.synthesis.generate import PhantomSettings
from misfm.volume import Volume

PHANTOMS = PhantomSettings(shape=(16, 18, 20), spacing=(20.0, 19.0, 18.0))
SPACING = "19,19,19"
INTENSITY = "ct:-200,600"
PATCH = (16, 16, 16)
NETWORK = {"name": "unet", "options": {"channels": [4, 8]}}
SHARED = [
    *("patch_size=[16, 16, 16]", "batch_size=2", "training.steps=6", "training.log_every=1"),
    *("training.validate_every=3", "training.checkpoint_every=2", "training.num_workers=0"),
]
PRETRAINING = [
    *(*SHARED, "network.options.channels=[4, 8]", "validation_batches=1", "generated=2"),
    "pretext.options.block_size=[[3, 6], [3, 6], [3, 6]]",
]
FINETUNING = [*SHARED, f"network={json.dumps(NETWORK)}"]


def as_options(assignments: Sequence[str], option: str = "--set") -> list[str]:
    """Settings as the command line takes them."""
    return [part for assignment in assignments for part in (option, assignment)]


def make_scans(folder: Path, count: int = 4) -> Path:
    """Write unlabelled scans."""
    write_phantom_scans(folder, count, seed=0, settings=PHANTOMS)
    return folder


def make_dataset(folder: Path, num_train: int = 4, num_test: int = 1) -> Path:
    """Write a labelled dataset with a split."""
    write_phantom_dataset(folder, num_train=num_train, num_test=num_test, seed=0, settings=PHANTOMS)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    write_json(folder / "splits_final.json", [{"train": names[:-1], "val": names[-1:]}])
    return folder


def make_dicom(folder: Path) -> Path:
    """Write series of DICOM, classic and packed, and files of other kinds that belong to the classic one."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # another folder of scripts
    import odd_dicom
    from odd_dicom_files import write_enhanced, write_rtstruct, write_seg, write_series

    stored = odd_dicom.stored_values()
    odd_dicom.packed("1.2.840.10008.1.2.4.90")(folder / "packed", stored)
    shutil.copy(max((folder / "packed").iterdir()), folder / "packed.dcm")
    write_enhanced(folder / "enhanced.dcm", stored)
    write_series(folder / "ct", stored)
    write_seg(folder / "seg.dcm", folder / "ct", stored // 2048, {1: "bright"})
    corners = np.array([[11, 22, 33], [13, 22, 33], [13, 26, 33], [11, 26, 33]], float)
    write_rtstruct(folder / "rtstruct.dcm", {"square": [corners, corners + np.array([0, 0, 3])]})
    return folder


def make_pairs(folder: Path, dataset: Path) -> Path:
    """Write the training cases of a dataset as pairs of files in one folder, of which none is packed."""
    folder.mkdir()
    for label in sorted((dataset / "labelsTr").iterdir()):
        name = label.name.removesuffix(".nii.gz")
        for path, end in ((label, "_seg"), (dataset / "imagesTr" / f"{name}_0000.nii.gz", "")):
            (folder / f"{name}{end}.nii").write_bytes(gzip.decompress(path.read_bytes()))
    packed = next(folder.iterdir())  # another ending than the rest, so that all are written
    packed.with_suffix(".nii.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    return folder


def make_label_maps(folder: Path) -> Path:
    """Write two label maps of a person's size and their names."""
    draw = np.random.default_rng(0)
    for number in range(2):
        data = np.zeros((1, 12, 12, 12), np.uint8)
        data[:, 2:10, 2:10, 2:10] = 1
        data[:, 3 + number : 7, 3:8, 3:6] = 2
        data[:, 4:6, 4:7, 7:9] = draw.integers(2, 4)
        write_label_map(folder / f"head_{number}.nii.gz", Volume(data, np.diag([3.0, 3.0, 3.0, 1.0])))
    write_json(folder / "labels.json", {"names": {"1": "head", "2": "left thing", "3": "right thing"}})
    return folder


def make_weights(path: Path, name: str = "unet", num_classes: int = 6, patch: Sequence[int] = PATCH) -> Path:
    """Write weights of a tiny network, drawn at random, that predict on the dataset's labels."""
    options = NETWORK["options"]
    if name == "resenc":
        options = {"channels": (4, 6), "blocks": (1, 1), "strides": ((1, 2, 2),)}
    torch.manual_seed(0)
    model = misfm.models.create(name, num_classes=num_classes, patch_size=tuple(patch), **options)
    info = weights.WeightsInfo(
        network=weights.NetworkInfo(name=name, options=model.backbone.options),
        in_channels=1,
        num_classes=num_classes,
        label_names=tuple(f"label {value}" for value in range(num_classes)),
        patch_size=tuple(patch),
        spacing=(19.0, 19.0, 19.0),
        intensity={"kind": "ct", "window": [-200.0, 600.0]},
        steps=1,
        data=None,
    )
    weights.save(path, model, info)
    return path
