"""Labelled scans as they lie on a disk, brought into nnU-Net's layout beside them; sources are only read.

Files that are right as they are get a second name (a hard link), which takes no room; where the file system
cannot do that they are copied. Only what no file holds is written: channels of a 4D file, and files of
another format than the rest. Every file is whole or not there, and ``dataset.json`` comes last, so that a
conversion that was stopped is gone on with by giving it again. ``convert.json`` notes what each file was made
of: what has another source by now is made again, see :mod:`misfm.data.convert_record`.
"""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from misfm.data.case_files import list_folder
from misfm.data.checks import REVERSED, readable
from misfm.data.convert_merge import merge, number_structures
from misfm.data.convert_record import Record, digest, read_record, write_record
from misfm.data.dataset_json import parse_channels, parse_labels, read_dataset_json
from misfm.data.intensity import detect
from misfm.data.layouts import Arrangement, FoundCase, Piece
from misfm.data.quiet import quiet_logger
from misfm.data.readers import files_beside, read_volume, stem
from misfm.errors import ConfigError, DataError
from misfm.files import atomic_write, make_folder, write_bytes, write_json
from misfm.text import file_name
from misfm.volume import Volume

ENDING = ".nii.gz"
"""Of what is written, and of all files where sources have several endings."""
UNNAMED = "label_"
"""Before the value, what a label is called of which nothing tells the name."""
_LOOKED_AT = 3
"""Images that tell CT from MR."""
_NOTED_EVERY = 30.0
"""Seconds, after which it is noted what files were made of: what was made since a kill is made again."""

Progress = Callable[[int, int], object]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Conversion:
    """What is to be done.

    Attributes:
        arrangement: what was recognised.
        out: the folder of the dataset.
        ending: of its files.
        content: of its ``dataset.json``.
        record: what an earlier conversion made, and what ``content`` would be had nobody edited it.
    """

    arrangement: Arrangement
    out: Path
    ending: str
    content: Mapping[str, Any]
    record: Record

    def pieces(self) -> Iterator[tuple[Piece, Path]]:
        """What goes where, case by case."""
        for case in self.arrangement.cases:
            name = file_name(case.name)
            for number, piece in enumerate(case.images):
                yield piece, self.out / f"images{case.part}" / f"{name}_{number:04d}{self.ending}"
            if case.label is not None:
                yield case.label, self.out / f"labels{case.part}" / f"{name}{self.ending}"


def plan(arrangement: Arrangement, source: Path, out: Path, progress: Progress | None = None) -> Conversion:
    """Decide what a dataset of an arrangement is; reads label maps where nothing else tells their labels.

    Raises:
        ConfigError: ``out`` and ``source`` lie in each other, or ``out`` holds what was made of others.
        DataError: a file that is missing or cannot be read, cases of one file name, or no label at all.
    """
    _refuse_source(arrangement, source, out)
    record = read_record(out, source)
    file = out / "dataset.json"
    there = read_dataset_json(file) if file.exists() else {}
    if there:
        parse_labels(there, file)
    known = record.content or there
    arrangement = number_structures(arrangement, known, there)
    content = _describe(arrangement, progress)
    parse_labels(content, file)
    parse_channels(content, file)
    merged = merge(content, there, record.content, file) if there else content
    record = replace(record, content=content)
    conversion = Conversion(arrangement, out, content["file_ending"], merged, record)
    _refuse_others(conversion)
    return conversion


def _refuse_source(arrangement: Arrangement, source: Path, out: Path) -> None:
    """Refuse folders within each other, cases of one name, and files that are missing."""
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ConfigError(f"{out} and {source} lie in each other; choose another folder for --out.")
    cases = arrangement.cases
    names = [file_name(case.name) for case in cases]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{source} has several cases {twice}; give them different names.")
    for piece in (piece for case in cases for piece in _pieces_of(case)):
        if not piece.source.exists():
            raise DataError(f"{piece.source} is missing; add the file, or take its case out of the list.")


def _describe(arrangement: Arrangement, progress: Progress | None) -> dict[str, Any]:
    """What ``dataset.json`` holds where there is none yet."""
    cases = arrangement.cases
    labels, more = _labels(arrangement, progress)
    channels = [
        name or _kind(case.images[i] for case in cases) for i, name in enumerate(arrangement.channels)
    ]
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": sum(case.part == "Tr" for case in cases),
        "file_ending": _common_ending([piece for case in cases for piece in _pieces_of(case)]),
        **arrangement.more,
        **more,
    }


def carry_out(conversion: Conversion, progress: Progress | None = None) -> tuple[dict[str, int], list[str]]:
    """Write the dataset; what is there already, made of what is in the source now, stays.

    Returns:
        How many files were linked, copied, written and unchanged, and what else to know, in sentences.

    Raises:
        DataError: a file that cannot be read, or a disk that is full.
    """
    counts = {"linked": 0, "copied": 0, "written": 0, "unchanged": 0}
    out, record = conversion.out, conversion.record
    todo = [
        (piece, target, target.relative_to(out).as_posix(), digest(piece, record.source))
        for piece, target in conversion.pieces()
    ]
    known = {key: record.made_of[key] for _, _, key, _ in todo if key in record.made_of}
    made = {key: known[key] if known[key] == now else "" for _, _, key, now in todo if key in known}
    record = replace(record, made_of=made)
    write_record(out, record)
    noted = time.monotonic()
    try:
        for done, (piece, target, key, now) in enumerate(todo, start=1):
            stays = target.exists() and made.get(key) == now
            counts[
                "unchanged" if stays else _place(piece, target, conversion.ending, new=key not in made)
            ] += 1
            made[key] = now
            if time.monotonic() - noted > _NOTED_EVERY:
                write_record(out, record)
                noted = time.monotonic()
            if progress:
                progress(done, len(todo))
    finally:
        write_record(out, record)
    if conversion.arrangement.split is not None:
        write_json(out / "splits_final.json", [conversion.arrangement.split])
    file = out / "dataset.json"
    write_json(file, dict(conversion.content))
    if any(conversion.content[key] != record.content[key] for key in ("labels", "channel_names")):
        return counts, [f"{file} has other labels or channels than would be written, which stay as they are."]
    return counts, []


def _pieces_of(case: FoundCase) -> list[Piece]:
    return [*case.images, *([] if case.label is None else [case.label])]


def _common_ending(pieces: Sequence[Piece]) -> str:
    """The ending that all files have, if they can keep it."""
    endings = {piece.source.name.removeprefix(stem(piece.source)) for piece in pieces if piece.read is None}
    one = endings.pop() if len(endings) == 1 else ENDING
    alone = all(piece.read is None and piece.channel is None for piece in pieces)
    packed = any(files_beside(piece.source) for piece in pieces if piece.read is None)
    return one if (alone and not packed) or one in (".nii", ENDING) else ENDING


def _labels(
    arrangement: Arrangement, progress: Progress | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Names and values of the labels, and further keys for ``dataset.json``."""
    if arrangement.labels is not None:
        return arrangement.labels, {}
    maps = [case.label for case in arrangement.cases if case.label is not None]
    values: set[int] = set()
    for done, piece in enumerate(maps, start=1):
        values |= _values(piece)
        if progress:
            progress(done, len(maps))
    for known in arrangement.known_labels:
        if values <= known.values and max(values) == max(known.values):
            return known.labels, known.more
    if not values - {0}:
        raise DataError("The label maps are all empty; there is nothing to learn from them.")
    return {"background": 0, **{f"{UNNAMED}{value}": value for value in sorted(values - {0})}}, {}


def _values(piece: Piece) -> set[int]:
    volume = _read(piece)
    values = np.unique(volume.data)
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or len(values) > 1000:
        raise DataError(
            f"{piece.source} is taken for a label map by its name, and its values are those of an image; "
            "rename it."
        )
    return {int(value) for value in values}


def _kind(pieces: Iterator[Piece]) -> str:
    """CT or MR, by the voxels of a few images."""
    kinds = [detect(_read(piece)) for piece, _ in zip(pieces, range(_LOOKED_AT), strict=False)]
    if len(set(kinds)) > 1:
        raise DataError(
            "The first images are of different kinds, CT in HU and others, by their voxels; put them into "
            "folders of their own."
        )
    return kinds[0].upper()


def _read(piece: Piece) -> Volume:
    if piece.read is not None:
        return piece.read()
    if piece.channel is None:
        return read_volume(piece.source)
    with readable(piece.source):
        image = nib.load(piece.source)
        data = np.asanyarray(image.dataobj[..., piece.channel]).transpose(2, 1, 0)[None]
        return Volume(data, image.affine[:, REVERSED])


def _refuse_others(conversion: Conversion) -> None:
    """Refuse a folder that holds files of something else."""
    planned = {target for _, target in conversion.pieces()}
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for file in list_folder(conversion.out / part):
            if file not in planned:
                raise ConfigError(
                    f"{conversion.out} holds {part}/{file.name}, which this conversion would not write; "
                    "choose another folder for --out, or remove it."
                )


def _place(piece: Piece, target: Path, ending: str, *, new: bool) -> str:
    """Bring one file to its place; returns what was done. ``new``: nothing tells what is there by now."""
    source = piece.source
    as_is = piece.read is None and piece.channel is None and source.name.endswith(ending)
    if as_is:
        source = source.resolve()
        if target.exists() and (target.samefile(source) or (new and _is_copy(source, target))):
            return "unchanged"
        return "linked" if _link(source, target) else _copy(source, target)
    with readable(source):
        content = _content(piece)
    write_bytes(target, gzip.compress(content, mtime=0) if ending.endswith(".gz") else content)
    return "written"


def _is_copy(source: Path, target: Path) -> bool:
    one, other = source.stat(), target.stat()
    return one.st_size == other.st_size and one.st_mtime == other.st_mtime


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; False where the file system cannot."""
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _copy(source: Path, target: Path) -> str:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)
    return "copied"


@quiet_logger("nibabel")
def _content(piece: Piece) -> bytes:
    """A piece as NIfTI; of NIfTI files the header, its scaling and the stored voxels are kept."""
    if piece.read is not None or not piece.source.name.lower().endswith((".nii", ENDING)):
        volume = _read(piece)
        return _bytes(nib.Nifti1Image(volume.data[0].transpose(2, 1, 0), volume.affine[:, REVERSED]))
    image: Any = nib.load(piece.source)
    stored = image.dataobj.get_unscaled()
    if piece.channel is not None:
        stored = stored[..., piece.channel]
    header = image.header.copy()
    header.set_data_shape(stored.shape)
    kept = type(image)(stored, None, header)
    kept.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    return _bytes(kept)


def _bytes(image: Any) -> bytes:
    content: bytes = image.to_bytes()
    return content
