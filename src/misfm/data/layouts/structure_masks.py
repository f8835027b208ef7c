"""A folder for each case, and in it a mask for each structure: ``CASE/ct``, ``CASE/segmentations/liver``.

The data of TotalSegmentator lie so. Where masks overlap, the smaller structure has the voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from misfm.data.case_files import list_folder
from misfm.data.case_notes import ANNOTATED_KEY
from misfm.data.dataset import check_grid
from misfm.data.layouts.assembly import key_files, same_channels, without_label
from misfm.data.layouts.base import LAYOUTS, Arrangement, FoundCase, Piece
from misfm.data.layouts.words import LABELS, channel_name, folder_word
from misfm.data.readers import is_volume_name, read_volume, stem
from misfm.errors import DataError
from misfm.terminal import logger
from misfm.text import one_line
from misfm.volume import Volume

FORM = "a folder for each case, with a folder of masks, one for each structure"


@LAYOUTS.register("structure-masks")
def structure_masks(folder: Path) -> Arrangement | None:
    """Recognise folders that hold images and one folder of masks each."""
    images: dict[str, dict[str, Path]] = {}
    masks: dict[str, dict[str, Path]] = {}
    for case in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        inner = [sub for sub in case.iterdir() if sub.is_dir() and folder_word(sub.name)[0] in LABELS]
        files = [file for file in list_folder(case) if is_volume_name(file)]
        if not files or case.name.startswith("."):
            continue
        keyed = key_files(files, case.name)
        if keyed is None or len(inner) > 1:
            return None
        images[case.name] = keyed
        masks[case.name] = {
            stem(file): file for sub in inner for file in list_folder(sub) if is_volume_name(file)
        }
    names = sorted({name for found in masks.values() for name in found})
    if not names:
        return None
    values = {name: value for value, name in enumerate(names, start=1)}
    channels = same_channels(folder, images, FORM)
    cases = [_case(name, images[name], channels, masks[name], values) for name in images]
    partly = {name: sorted(found) for name, found in masks.items() if found and len(found) < len(names)}
    return Arrangement(
        f"{FORM}: {len(names)} structures, {', '.join(map(one_line, names[:3]))}, ...",
        tuple(channel_name(key) for key in channels),
        tuple(cases),
        {"background": 0, **values},
        more={ANNOTATED_KEY: partly} if partly else {},
        notes=without_label(cases),
        by_name=True,
    )


def _case(
    name: str,
    images: Mapping[str, Path],
    channels: list[str],
    masks: Mapping[str, Path],
    values: Mapping[str, int],
) -> FoundCase:
    label = None
    if masks:
        source = next(iter(masks.values())).parent
        read = partial(merge, {values[key]: file for key, file in masks.items()}, name)
        label = Piece(source, read=read, made_of=tuple(masks[key] for key in sorted(masks)))
    return FoundCase(
        name, tuple(Piece(images[key]) for key in channels), label, "Tr" if label is not None else "Ts"
    )


def merge(masks: Mapping[int, Path], case: str) -> Volume:
    """Make a label map (1, D, H, W) of the masks of structures, by value; the smaller lie over the larger.

    Raises:
        DataError: masks on several grids, or of other values than 0 and a higher one.
    """
    first: Volume | None = None
    sizes = np.zeros(max(masks, default=0) + 1, np.int64)
    sizes[0] = np.iinfo(np.int64).max
    num_shared = 0
    for value, file in sorted(masks.items()):
        mask = read_volume(file)
        if first is None:
            first_file = file
            kind = np.uint8 if max(masks) < 256 else np.int16
            first = Volume(np.zeros(mask.data.shape, kind), mask.affine)
        check_grid(file, mask, first_file, first)
        held = np.unique(mask.data)
        if len(held) > 2 or held[0] != 0:
            shown = ", ".join(f"{one:g}" for one in held[:3]) + (", ..." if len(held) > 3 else "")
            raise DataError(
                f"{file} is taken for the mask of one structure, which is 0 outside and one higher value "
                f"inside of it, and holds {shown}; correct or rename it."
            )
        inside = mask.data > 0
        sizes[value] = np.count_nonzero(inside)
        below = first.data[inside]
        num_shared += int(np.count_nonzero(below))
        first.data[inside] = np.where(sizes[below] > sizes[value], value, below)
    if first is None:
        raise DataError("There are no masks to make a label map of.")
    if num_shared:
        logger.warning("%s: masks overlap in %d voxel(s), which the smaller structure has.", case, num_shared)
    return first
