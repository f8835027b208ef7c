"""Cases put together from files whose channel is known; what does not fit is refused with what was seen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from misfm.data.layouts.base import Arrangement, FoundCase, Piece
from misfm.data.layouts.words import (
    PLAIN,
    channel_name,
    channel_order,
    is_label,
    split_key,
    take_apart,
)
from misfm.data.readers import stem
from misfm.errors import DataError
from misfm.text import one_line

_NAMED = 5
"""Cases that a sentence names."""

Files = Mapping[str, Path]
"""Files of a case by what tells them apart."""


def assemble(folder: Path, found: Mapping[str, Files], form: str) -> Arrangement:
    """Make cases of files; all must have the same channels, and a label map each or none.

    Args:
        folder: of the source, for messages.
        found: files of each case by key, see :func:`misfm.data.layouts.words.take_apart`.
        form: what kind of layout it is, which begins the rule.

    Raises:
        DataError: channels that not all cases have, several label maps of a case, or none at all.
    """
    keys = {key for files in found.values() for key in files}
    label_keys = {key for key in keys if is_label(split_key(key))}
    maps = {name: sorted(label_keys & set(files)) for name, files in found.items()}
    for name, several in maps.items():
        if len(several) > 1:
            raise DataError(
                f"{folder}: {form}, but {one_line(name)} has several label maps by name "
                f"({_quoted(several)}); leave the one that is meant."
            )
    if keys == label_keys:
        raise DataError(f"{folder}: {form}, but there are label maps ({_quoted(sorted(label_keys))}) alone.")
    images = {
        name: {key: file for key, file in files.items() if key not in label_keys}
        for name, files in found.items()
    }
    channels = same_channels(folder, images, form)
    cases = [
        FoundCase(
            name,
            tuple(Piece(files[key]) for key in channels),
            Piece(files[maps[name][0]]) if maps[name] else None,
            "Tr" if maps[name] else "Ts",
        )
        for name, files in sorted(found.items())
    ]
    rule = f"{form}; channels {_quoted(channels)}, label maps {_quoted(sorted(label_keys))}"
    return Arrangement(
        rule, tuple(channel_name(key) for key in channels), tuple(cases), notes=without_label(cases)
    )


def same_channels(folder: Path, found: Mapping[str, Files], form: str) -> list[str]:
    """Return the channels of cases, which must all have the same.

    Raises:
        DataError: a case lacks one that others have.
    """
    channels = channel_order({key for files in found.values() for key in files})
    for name, files in found.items():
        if not files:
            raise DataError(
                f"{folder}: {form}, but {one_line(name)} has a label map and no image; give the two names "
                "that differ at the end alone, or take the label map away."
            )
        missing = [key for key in channels if key not in files]
        if missing:
            raise DataError(
                f"{folder}: {form}, but {one_line(name)} has no {_quoted(missing)}, which other cases have, "
                f"but {_quoted(sorted(files))}; rename or add the file, or take the case away."
            )
    return channels


def without_label(cases: Sequence[FoundCase]) -> tuple[str, ...]:
    """Say which cases nobody has drawn a label map of, if there are any."""
    names = [one_line(case.name) for case in cases if case.label is None]
    if not names:
        return ()
    more = ", ..." if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED]) + more
    return (f"{len(names)} case(s) without a label map become test cases (imagesTs): {listed}.",)


def _quoted(keys: Sequence[str]) -> str:
    shown = [f"'{one_line(key)}'" if key else "file without a word at the end" for key in keys[:12]]
    return ", ".join([*shown, *(["..."] if len(keys) > len(shown) else [])])


def key_files(files: Sequence[Path], folder: str) -> dict[str, Path] | None:
    """Return the files of a case by what each is: what follows the name of the folder or what all have in
    common, else the whole name; None where two would be the same."""
    keys = {file: _behind(stem(file), folder) for file in files}
    others = {file: take_apart(f"x_{stem(file)}") for file, key in keys.items() if key is None}
    in_common = len(others) > 1 and len({name.case for name in others.values()}) == 1
    keyed: dict[str, Path] = {}
    for file, key in keys.items():
        if key is None:
            whole = stem(file).lower()
            key = others[file].key if in_common else "" if whole in PLAIN else whole
        keyed[key] = file
    return keyed if len(keyed) == len(files) else None


def _behind(name: str, folder: str) -> str | None:
    """What follows the name of the folder, None where the name does not begin with it."""
    rest = name.removeprefix(folder)
    if rest == name or (rest and rest[0].isalnum()):
        return None
    return rest.strip("_-. ").lower()


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders below ``root``, each once, with the names of their folders and files, without hidden ones.

    Links to folders are followed. Names of folders that the caller takes away are not entered.
    """
    seen: set[tuple[int, int]] = set()  # links may lead to one folder twice, or back up
    for place, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(place)
        known = (status.st_dev, status.st_ino)
        subfolders[:] = sorted(name for name in subfolders if known not in seen and not name.startswith("."))
        if known not in seen:
            seen.add(known)
            yield Path(place), subfolders, sorted(name for name in names if not name.startswith("."))
