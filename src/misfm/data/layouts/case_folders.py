"""A folder for each case: BraTS (``CASE/CASE_t1.nii.gz``, ``CASE-t1n``), or ``CASE/ct``, ``CASE/seg``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from misfm.data.layouts.assembly import assemble, key_files, walk
from misfm.data.layouts.base import LAYOUTS, Arrangement, KnownLabels
from misfm.data.layouts.words import is_known_folder, is_label, split_key
from misfm.data.readers import is_volume_name
from misfm.errors import DataError
from misfm.text import one_line

_BRATS = {"T1", "T1ce", "T2", "FLAIR"}


def _brats(enhancing: int) -> KnownLabels:
    """The regions that BraTS scores; up to 2021 the enhancing tumour has the value 4, then 3."""
    return KnownLabels(
        frozenset({0, 1, 2, enhancing}),
        {
            "background": 0,
            "whole_tumor": [1, 2, enhancing],
            "tumor_core": [1, enhancing],
            "enhancing_tumor": [enhancing],
        },
        {"regions_class_order": [2, 1, enhancing]},
    )


@LAYOUTS.register("case-folders")
def case_folders(folder: Path) -> Arrangement | None:
    """Recognise a tree whose lowest folders hold a case each, with at least an image and a label map."""
    found: dict[str, dict[str, Path]] = {}
    for place, files in _folders(folder):
        if is_known_folder(place.name):
            return None
        keyed = key_files(files, place.name)
        if keyed is None:
            return None
        name = place.name if place.name not in found else "_".join(place.relative_to(folder).parts)
        if name in found:
            raise DataError(f"{folder} holds several folders {one_line(name)}; give them different names.")
        found[name] = keyed
    if not found or not any(len(files) > 1 for files in found.values()):
        return None
    keys = {key for files in found.values() for key in files}
    if not any(is_label(split_key(key)) for key in keys):
        return None
    arrangement = assemble(folder, found, "a folder for each case")
    if set(arrangement.channels) == _BRATS:
        return replace(arrangement, known_labels=(_brats(4), _brats(3)), rule=f"BraTS: {arrangement.rule}")
    return arrangement


def _folders(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders below ``root`` that hold scans, and these; nothing where ``root`` itself does."""
    for place, subfolders, names in walk(root):
        files = [place / name for name in names if is_volume_name(place / name)]
        if files and place == root:
            return
        if files:
            yield place, files
            subfolders.clear()
