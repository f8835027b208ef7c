"""Images in one folder, label maps in another: ``images`` and ``labels``, ``imagesTr`` and ``labelsTr``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from misfm.data.case_files import Part, list_folder
from misfm.data.layouts.assembly import without_label
from misfm.data.layouts.base import LAYOUTS, Arrangement, FoundCase, Piece
from misfm.data.layouts.words import (
    CHANNELS,
    LABELS,
    PLAIN,
    channel_name,
    channel_order,
    folder_word,
    take_apart,
)
from misfm.data.readers import is_volume_name, stem
from misfm.errors import DataError
from misfm.text import one_line

_PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "tr", "trainset", "training_set"), "Tr"),
    **dict.fromkeys(("val", "valid", "validation"), "Tr"),
    **dict.fromkeys(("test", "testing", "ts", "testset", "test_set"), "Ts"),
}
_VALIDATION = ("val", "valid", "validation")
_NAMED = 5


@LAYOUTS.register("two-folders")
def two_folders(folder: Path) -> Arrangement | None:
    """Recognise folders of images and of label maps whose files have the same names but for such words."""
    if (folder / "dataset.json").exists():
        return None
    inner = {sub: _PARTS.get(sub.name.lower()) for sub in _subfolders(folder)}
    parted = [(sub, part) for sub, part in inner.items() if part is not None and _kinds(sub)[1]]
    if not parted:
        return _pair(folder, "Tr")
    return _joined(folder, parted)


def _joined(folder: Path, parted: list[tuple[Path, Part]]) -> Arrangement | None:
    """What lies in folders such as ``train`` and ``test``; validation cases stay apart in the split."""
    found = [(sub, one) for sub, part in parted if (one := _pair(sub, part)) is not None]
    if not found:
        return None
    cases = [case for _, one in found for case in one.cases]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{folder} has several cases {one_line(twice)}; give them different names.")
    first = found[0][1]
    if any(one.channels != first.channels for _, one in found):
        raise DataError(f"{folder} has other channels in {found[0][0].name} than in other folders.")
    held_out = [
        case.name
        for sub, one in found
        if sub.name.lower() in _VALIDATION
        for case in one.cases
        if case.part == "Tr"
    ]
    training = [case.name for case in cases if case.part == "Tr" and case.name not in held_out]
    return replace(
        first,
        rule=f"in {', '.join(sub.name for sub, _ in found)}: {first.rule}",
        cases=tuple(cases),
        notes=tuple(note for _, one in found for note in one.notes),
        split={"train": training, "val": held_out} if held_out and training else None,
    )


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]


def _scans(folder: Path) -> list[Path]:
    return [file for file in list_folder(folder) if is_volume_name(file)]


def _kinds(folder: Path, part: Part = "Tr") -> tuple[dict[str, Path], list[Path]]:
    """Folders of images by channel, empty for one whose name tells none, and folders of label maps.

    ``part`` says of which of ``imagesTr`` and ``imagesTs``; folders without such an end are of both.
    """
    images: dict[str, Path] = {}
    labels: list[Path] = []
    for sub in _subfolders(folder):
        word, end = folder_word(sub.name)
        if end not in ("", part.lower()) or not _scans(sub):
            continue
        if word in LABELS:
            labels.append(sub)
        elif word in CHANNELS or word in PLAIN:
            images["" if word in PLAIN else word] = sub
    return images, labels


def _pair(folder: Path, part: Part) -> Arrangement | None:
    images, labels = _kinds(folder)
    if not images or not labels:
        return None
    if len(labels) > 1 or ("" in images and len(images) > 1):
        seen = ", ".join(sub.name for sub in [*images.values(), *labels])
        raise DataError(f"{folder} has several folders that may be meant: {seen}; give a folder with two.")
    known = {take_apart(stem(file)).case for sub in images.values() for file in _scans(sub)}
    numbers = not all(take_apart(stem(file)).case in known for file in _scans(labels[0]))
    cases, channels = _cases(folder, images, labels, part, numbers=numbers)
    tests, test_labels = _kinds(folder, "Ts")
    if tests and tests != images:
        more, others = _cases(folder, tests, test_labels, "Ts", numbers=numbers)
        if others != channels:
            raise DataError(f"{folder} has other channels in its test images than in those to train on.")
        cases += more
    sources = ", ".join(sub.name for sub in images.values())
    rule = f"images in {sources}, label maps in {labels[0].name}, matched by name"
    if len(channels) > 1:
        rule += f"; channels {', '.join(channels)}"
    names = tuple(channel_name(key) for key in channels)
    return Arrangement(rule, names, tuple(cases), notes=without_label(cases))


def _cases(
    folder: Path, images: Mapping[str, Path], labels: Sequence[Path], part: Part, *, numbers: bool
) -> tuple[list[FoundCase], list[str]]:
    """The cases in folders of images and label maps, and their channels."""
    found, channels = _channels(folder, images, numbers=numbers)
    maps = _maps(folder, labels[0], found) if labels else {}
    return [
        FoundCase(
            name,
            tuple(Piece(files[key]) for key in channels),
            Piece(maps[name]) if name in maps else None,
            part if name in maps else "Ts",
        )
        for name, files in sorted(found.items())
    ], channels


def _channels(
    folder: Path, images: Mapping[str, Path], *, numbers: bool
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Files of each case by channel, and the channels: a folder each, or known from the ends of the names."""
    found: dict[str, dict[str, Path]] = {}
    for channel, sub in images.items():
        for file in _scans(sub):
            name = take_apart(stem(file), numbers=numbers)
            key = channel or name.key
            case = found.setdefault(name.case, {})
            if key in case:
                raise DataError(f"{folder}: {file.name} and {case[key].name} would be one image; rename one.")
            case[key] = file
    channels = channel_order({key for files in found.values() for key in files})
    for case_name, files in found.items():
        missing = [key for key in channels if key not in files]
        if missing:
            raise DataError(
                f"{folder}: {one_line(case_name)} has no image '{missing[0] or 'without a word'}', which "
                "other cases have; add it, or take the case away."
            )
    return found, channels


def _maps(folder: Path, labels: Path, found: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    """Label maps by case, by the names of their images or all longer by the same end.

    Those without an image are an error, for nobody knows what they belong to.
    """
    maps: dict[str, Path] = {}
    strays = []
    for file in _scans(labels):
        case = take_apart(stem(file)).case
        if case not in found:
            strays.append(file.name)
        elif case in maps:
            raise DataError(f"{labels}: {file.name} and {maps[case].name} would be of one case; rename one.")
        else:
            maps[case] = file
    if strays and (extended := _extended(labels, found)):
        return extended
    if strays:
        raise DataError(
            f"{labels} holds {len(strays)} label map(s) without an image of that name in {folder}: "
            f"{', '.join(one_line(name) for name in strays[:_NAMED])}; cases are such as "
            f"{min(found)}: rename them alike."
        )
    return maps


def _extended(labels: Path, found: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    """Label maps by case where all are called like an image and the same end; else none."""
    images = {stem(file): case for case, files in found.items() for file in files.values()}
    maps: dict[str, Path] = {}
    ends = set()
    for file in _scans(labels):
        name = stem(file)
        begins = [
            image for image in images if name.startswith(image) and not name[len(image) :][:1].isalnum()
        ]
        if not begins:
            return {}
        image = max(begins, key=len)
        ends.add(name[len(image) :])
        maps[images[image]] = file
    return maps if len(ends) == 1 and len(maps) == len(_scans(labels)) else {}
