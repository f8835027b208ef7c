"""Images and label maps in one folder: ``CASE_image`` and ``CASE_label``, ``CASE`` and ``CASE_seg``."""

from __future__ import annotations

from pathlib import Path

from misfm.data.case_files import list_folder
from misfm.data.layouts.assembly import assemble
from misfm.data.layouts.base import LAYOUTS, Arrangement
from misfm.data.layouts.words import take_apart
from misfm.data.readers import is_volume_name, stem
from misfm.errors import DataError


@LAYOUTS.register("suffixes")
def side_by_side(folder: Path) -> Arrangement | None:
    """Recognise a folder in which some names end in a word for a label map."""
    files = [file for file in list_folder(folder) if is_volume_name(file)]
    names = {file: take_apart(stem(file)) for file in files}
    labelled = {name.case for name in names.values() if name.is_label}
    if not labelled:
        return None
    if not labelled & {name.case for name in names.values() if not name.is_label}:
        names = {file: take_apart(stem(file), numbers=True) for file in files}
    found: dict[str, dict[str, Path]] = {}
    for file, name in names.items():
        files_of_case = found.setdefault(name.case, {})
        if name.key in files_of_case:
            other = files_of_case[name.key].name
            raise DataError(f"{folder} holds {file.name} and {other}, which would be one file of a case.")
        files_of_case[name.key] = file
    return assemble(folder, found, "images and label maps side by side, told apart by the end of their names")
