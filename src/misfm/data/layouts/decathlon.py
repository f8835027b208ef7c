"""The Medical Segmentation Decathlon: images without a channel's number, several channels in one 4D file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib

from misfm.data.checks import readable
from misfm.data.dataset_json import parse_channels, read_dataset_json
from misfm.data.layouts.base import LAYOUTS, Arrangement, FoundCase, Piece
from misfm.data.quiet import quiet_logger
from misfm.data.readers import stem
from misfm.errors import DataError
from misfm.text import one_line


@LAYOUTS.register("decathlon")
def decathlon(folder: Path) -> Arrangement | None:
    """Recognise a ``dataset.json`` that lists ``training`` images, which bear no channel's number."""
    file = folder / "dataset.json"
    if not file.exists():
        return None
    content = read_dataset_json(file)
    channels = parse_channels(content, file)
    listed = content.get("training")
    if not isinstance(listed, list) or not listed:
        raise DataError(
            f"{folder} has a dataset.json without a list 'training', so it is a dataset as it is: "
            f"'misfm finetune --dataset {folder}' takes it, and 'misfm info {folder}' says what is wrong."
        )
    training = [_paths(entry, folder, file) for entry in listed]
    first = training[0][0]
    numbered = first.with_name(f"{stem(first)}_0000{first.name.removeprefix(stem(first))}")
    if numbered.exists() or all(re.search(r"_\d{4}$", stem(image)) for image, _ in training):
        raise DataError(
            f"{folder} has images with the numbers of channels, so it is a dataset as it is: "
            f"'misfm finetune --dataset {folder}' takes it, and 'misfm info {folder}' says what is wrong."
        )
    test = content.get("test", [])
    tests = [_paths(entry, folder, file)[0] for entry in (test if isinstance(test, list) else [])]
    cases = [
        *(FoundCase(stem(image), _pieces(image, len(channels)), Piece(label)) for image, label in training),
        *(FoundCase(stem(image), _pieces(image, len(channels)), None, "Ts") for image in tests),
    ]
    one_file = "each image" if len(channels) == 1 else f"{len(channels)} channels in each 4D image"
    rule = f"Medical Segmentation Decathlon: {one_file}, channels {', '.join(channels)} by dataset.json"
    labels = content.get("labels")
    more: dict[str, Any] = {
        key: content[key] for key in ("name", "description", "reference", "licence") if key in content
    }
    if "regions_class_order" in content:
        more["regions_class_order"] = content["regions_class_order"]
    return Arrangement(rule, channels, tuple(cases), _labels(labels, file), more=more)


def _paths(entry: Any, folder: Path, file: Path) -> tuple[Path, Path]:
    """Image and label map of an entry; the latter is the folder where the entry names none."""
    image = entry.get("image") if isinstance(entry, dict) else entry
    label = entry.get("label", ".") if isinstance(entry, dict) else "."
    if not isinstance(image, str) or not isinstance(label, str):
        raise DataError(f'{file} must list cases as {{"image": "...", "label": "..."}}; correct it.')
    if one_line(Path(image).name) != Path(image).name:
        raise DataError(f"{file} lists an image whose name cannot be shown; rename it.")
    return folder / image, folder / label


def _labels(labels: Any, file: Path) -> dict[str, Any]:
    """Names to values, whichever way round the file has them."""
    if not isinstance(labels, dict):
        raise DataError(f'{file} must hold \'labels\' such as {{"0": "background", "1": "liver"}}.')
    if all(re.fullmatch("[0-9]{1,9}", key) and isinstance(value, str) for key, value in labels.items()):
        return {value: int(key) for key, value in labels.items()}
    return dict(labels)


@quiet_logger("nibabel")
def _pieces(image: Path, num_channels: int) -> tuple[Piece, ...]:
    """The channels of an image: one of a 3D file, or those along the fourth axis."""
    if not image.exists():
        raise DataError(
            f"{image} is missing, which dataset.json lists; add the file, or take it off the list."
        )
    with readable(image):
        shape = list(nib.load(image).shape)
    if len(shape) == 3 and num_channels == 1:
        return (Piece(image),)
    if len(shape) == 4 and shape[3] == num_channels:
        return tuple(Piece(image, channel) for channel in range(num_channels))
    raise DataError(
        f"{image} has shape {' x '.join(map(str, shape))} and dataset.json names {num_channels} channel(s), "
        "which lie along the fourth axis; correct the file or the names."
    )
