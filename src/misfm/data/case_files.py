"""Where images and label maps of a dataset lie: named as nnU-Net wants them, as in the Decathlon, or listed.

nnU-Net names images ``imagesTr/CASE_0000.nii.gz``, the number being that of the channel. The Medical
Segmentation Decathlon has no numbers. ``dataset.json`` may also list the files of each training case under
``"dataset"``, wherever they lie: ``{"CASE": {"images": ["a/ct.nii.gz"], "label": "a/liver.nii.gz"}}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from misfm.data.readers import is_volume_name, stem
from misfm.errors import DataError
from misfm.settings import shown
from misfm.text import one_line

LISTED_KEY = "dataset"
Part = Literal["Tr", "Ts"]
"""Cases to train and validate on, and cases to test on."""
PARTS: tuple[Part, Part] = ("Tr", "Ts")


@dataclass(frozen=True)
class Case:
    """Image and label map of a subject.

    Attributes:
        name: the file name without channel number and ending.
        image_paths: one file for each channel.
        label_path: None where the dataset has no label map of this case.
    """

    name: str
    image_paths: tuple[Path, ...]
    label_path: Path | None


def parse_listed(content: Mapping[str, Any], num_channels: int, path: Path) -> tuple[Case, ...] | None:
    """Return the training cases that ``dataset.json`` lists, ordered by name; None where it lists none.

    Args:
        content: of ``dataset.json``.
        num_channels: images that each case must have.
        path: the file, in whose folder relative paths begin.

    Raises:
        DataError: another form, no case, or a case with another number of images.
    """
    if LISTED_KEY not in content:
        return None
    listed = content[LISTED_KEY]
    if not isinstance(listed, dict) or not listed:
        raise DataError(
            f'{path} must give \'{LISTED_KEY}\' as {{"CASE": {{"images": [...], "label": ...}}}} with a case '
            "at least; correct it, or leave it out and put images into imagesTr."
        )
    return tuple(_listed_case(name, listed[name], num_channels, path) for name in sorted(listed))


def _listed_case(name: str, entry: Any, num_channels: int, path: Path) -> Case:
    images = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(one, str) and one for one in images):
        raise DataError(f"{path} must list the 'images' of case {shown(name)} as paths; correct it.")
    if len(images) != num_channels:
        raise DataError(
            f"{path} lists {len(images)} images of case {shown(name)} and names {num_channels} channels; "
            "list one image for each channel."
        )
    label = entry.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise DataError(f"{path} must give the 'label' of case {shown(name)} as a path; correct it.")
    if name != one_line(name) or not name:
        raise DataError(f"{path} lists a case {shown(name)}, which cannot be shown; rename it.")
    files = tuple((path.parent / one).absolute() for one in images)
    return Case(name, files, None if label is None else (path.parent / label).absolute())


def list_folder(folder: Path) -> list[Path]:
    """Return the files of a folder by name, without hidden ones, such as macOS leaves beside others."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if not file.name.startswith(".")]


def find_cases(path: Path, part: Part, channel_names: Sequence[str], ending: str) -> list[Case]:
    """Find the cases in ``imagesTr`` or ``imagesTs`` of a dataset, ordered by name.

    Files of missing channels are named, too. Where there is one channel and no file has a number, each file
    is a case, as in the Decathlon.

    Args:
        path: the dataset.
        part: which of the two.
        channel_names: of the dataset.
        ending: of its images and label maps.

    Raises:
        DataError: no image in ``imagesTr``, one of a channel that has no name, images without a channel's
            number where there are several channels, or a name that is no text.
    """
    folder, labels = path / f"images{part}", path / f"labels{part}"
    files = [file for file in list_folder(folder) if file.name.endswith(ending)]
    numbered = {file: match for file in files if (match := _numbered(file, ending))}
    if len(channel_names) == 1 and not any(int(match[2]) == 0 for match in numbered.values()):
        numbered = {}  # the numbers are of cases
    for file, match in numbered.items():
        if int(match[2]) >= len(channel_names):
            raise DataError(
                f"{file} is of channel {int(match[2])}, and dataset.json names {len(channel_names)} under "
                "'channel_names': name the channel there, or take the file away."
            )
    images = {
        match[1]: tuple(folder / f"{match[1]}_{number:04d}{ending}" for number in range(len(channel_names)))
        for match in numbered.values()
    }
    if not numbered and len(channel_names) == 1:
        images = {file.name.removesuffix(ending): (file,) for file in files if file.name != ending}
    for name, paths in images.items():
        if name != one_line(name):
            raise DataError(f"{paths[0]} has characters in its name that cannot be shown; rename it.")
    if not images and part == "Tr":
        raise _nothing_found(path, folder, files, len(channel_names), ending)
    found = {name: labels / f"{name}{ending}" for name in sorted(images)}
    return [Case(name, images[name], file if file.exists() else None) for name, file in found.items()]


def passed_over(path: Path, part: Part, ending: str, cases: Sequence[Case]) -> tuple[list[Path], list[Path]]:
    """Return the scans in the folders of images and of label maps that belong to none of the cases."""
    used = {file for case in cases for file in (*case.image_paths, case.label_path)}
    left = [
        [
            file
            for file in list_folder(path / f"{kind}{part}")
            if file not in used and (file.name.endswith(ending) or is_volume_name(file))
        ]
        for kind in ("images", "labels")
    ]
    return left[0], left[1]


def _numbered(file: Path, ending: str) -> re.Match[str] | None:
    return re.fullmatch(rf"([^.].*)_(\d{{4}}){re.escape(ending)}", file.name)


def _nothing_found(path: Path, folder: Path, files: Sequence[Path], channels: int, ending: str) -> DataError:
    if files:
        return DataError(
            f"{folder} holds images without a channel's number, such as {files[0].name}, and dataset.json "
            f"names {channels} channels: name images CASE_0000{ending}, CASE_0001{ending}, ..., or, if all "
            f"channels are in one file as in the Decathlon, run 'misfm convert {path} --out DATASET'."
        )
    others = [file for file in list_folder(folder) if is_volume_name(file)]
    if others:
        kind = others[0].name.removeprefix(stem(others[0]))
        return DataError(
            f"{folder} holds no image that ends in {ending}, but such as {others[0].name}; write "
            f'"file_ending": {shown(kind)} into dataset.json, and name images CASE_0000{kind}.'
        )
    return DataError(f"{folder} holds no image; name images CASE_0000{ending}.")
