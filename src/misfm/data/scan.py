"""Finding scans by headers only: files, trees, DICOM, nnU-Net datasets and nnssl's pretrain_data.json."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misfm.data import unread
from misfm.data.case_files import LISTED_KEY
from misfm.data.checks import check_regular, readable
from misfm.data.dataset import Dataset, check_grid
from misfm.data.intensity import Kind, detect, kind_of_name
from misfm.data.readers import (
    Reader,
    Series,
    SeriesReader,
    files_beside,
    formats,
    is_volume_name,
    read_volume,
    reader_of,
    stem,
)
from misfm.documents import read_json
from misfm.errors import DataError
from misfm.terminal import logger
from misfm.text import one_line, path_text
from misfm.volume import Volume


class Channel(NamedTuple):
    """Which channel of a dataset's case a scan is: the dataset's folder, the case, the number, all names."""

    dataset: Path
    case: str
    number: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class ScanSource:
    """A scan that was found but not read yet.

    Attributes:
        path: the file, or the folder of a series (its first file where the folder holds several).
        case: name of the case, in one printable line; no file name, which :func:`misfm.text.file_name` makes.
        kind: "ct", "mr", "pet", ... where a dataset says so, which is trusted.
        series: the files of a scan that is many, as in DICOM; None for other formats.
        anonymised_path: the mask of what was removed to make the patient unknown, such as the face.
        fault: why a list of scans cannot be read that was found instead of a scan.
        pseudonym: what stores know it by instead of its path, if anything.
        is_released: somebody has looked at it and put it back out of the quarantine.
        folders: those between the source that was searched and the file, as far as they tell whose it is.
        channel: which one it is of a case in a dataset with several, if any.
    """

    path: Path
    case: str
    kind: Kind | None = None
    series: Series | None = None
    anonymised_path: Path | None = None
    fault: str = ""
    pseudonym: str = ""
    is_released: bool = False
    folders: tuple[str, ...] = ()
    channel: Channel | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "case", one_line(self.case))

    @property
    def source(self) -> str:
        """What records, JSON and the index of a store know it by: its path, or its pseudonym.

        Of several scans in one file the part follows the path.
        """
        part = f"#{one_line(self.series.part)}" if self.series and self.series.part else ""
        return self.pseudonym or path_text(self.path) + part

    @property
    def modality(self) -> str | None:
        """What its series gives as a hint of the kind."""
        return self.series.modality if self.series else None

    @property
    def files(self) -> list[Path]:
        """The path and all files that it lies in."""
        others = self.series.files if self.series else ()
        return [self.path, *others, *filter(None, [self.anonymised_path])]

    def kinds(self, volume: Volume) -> tuple[Kind, ...]:
        """Return what each channel of the scan is: as its dataset or header says, else by its voxels."""
        return (self.kind or detect(volume, self.modality),)

    @property
    def notes(self) -> list[str]:
        """What :meth:`read` had to repair, once it has; clauses that name no file."""
        return list(self.series.notes) if self.series else []

    @property
    def stamp(self) -> str:
        """Size and time of last change: a source with the same stamp has not changed."""
        files = self.series.files if self.series else (self.path, *files_beside(self.path))
        states = []
        for file in (*files, self.anonymised_path) if self.anonymised_path else files:
            with suppress(OSError, ValueError):  # a list may name what cannot be a path
                states.append(file.stat())
        newest = max((state.st_mtime_ns for state in states), default=0)
        return f"{len(states)} files, {sum(state.st_size for state in states)} bytes, {newest} ns"

    def read(self) -> Volume:
        """Read the scan; see ``read_volume``."""
        if self.fault:
            raise DataError(self.fault)
        with readable(self.path):
            return self.series.read() if self.series else read_volume(self.path)

    def read_anonymised(self, scan: Volume) -> Volume | None:
        """Read the mask of what was removed from the scan, if there is one.

        Returns:
            (1, D, H, W) uint8 on the grid of the scan as read, 1 where the mask is not 0.

        Raises:
            DataError: the mask is missing, damaged, or lies on another grid.
        """
        if self.anonymised_path is None:
            return None
        with readable(self.anonymised_path):
            mask = read_volume(self.anonymised_path)
        check_grid(self.anonymised_path, mask, self.path, scan)
        return Volume((mask.data != 0).astype(np.uint8), scan.affine)


def find_scans(sources: Sequence[str | Path], *, by_name: bool = True) -> list[ScanSource]:
    """Find all scans in files and trees, in the order of sources, then paths; each path once.

    A tree may hold files that any reader takes (:mod:`misfm.data.readers`: NIfTI, NRRD, MetaImage; DICOM with
    any name, grouped by series wherever they lie), nnU-Net datasets and ``pretrain_data.json`` (what it
    lists). Of a dataset come the images of
    ``imagesTr``, every channel a scan of its own; never its label maps, and never ``imagesTs``, for networks
    must not have seen what they are tested on: to get those, name that folder as a source. A scan that is
    both listed with a mask of what was removed from it and found elsewhere keeps the mask. Links to folders
    are followed, each folder once; hidden files and folders are passed over. A damaged DICOM file, a listed
    file that is missing, a folder that cannot be read and a damaged list or dataset below a source are
    returned as well, so that reading them tells what is wrong. Files that look like scans of formats that
    are not read (:mod:`misfm.data.unread`), and DICOM that is no scan, such as scouts and reports, are passed
    over with a warning.

    Args:
        sources: files and folders.
        by_name: whether a warning may name files.

    Raises:
        DataError: a source that does not exist, holds no scan or is a damaged list.
    """
    found: dict[str, ScanSource] = {}
    passed: dict[str, list[Path]] = {}
    for source in sources:
        path = Path(source).absolute()
        if not path.exists():
            raise DataError(f"{source} does not exist; check the path.")
        if not path.is_dir():
            check_regular(path)
        foreign: list[Path] = []
        scans = _in_tree(path, foreign, passed) if path.is_dir() else _in_file(path)
        unknown = unread.told(foreign, by_name=by_name) if foreign else ""
        if not scans:
            beside = f" but files of formats that are not read ({unknown})" if unknown else ""
            beside += "".join(f", {len(files)} x {what}" for what, files in passed.items())
            raise DataError(
                f"{source} holds no scan{beside}; give files of {formats()}, or a folder of them."
            )
        if unknown:
            logger.warning(
                "%s: %d file(s) that look like scans are of formats that are not read, and were passed over "
                "(%s); convert them to NIfTI.",
                *(source if by_name else "The source", len(foreign), unknown),
            )
        for scan in scans:
            if scan.anonymised_path or scan.source not in found:
                found[scan.source] = scan
    for what, files in passed.items():
        example = f" (first: {files[0]})" if by_name else ""
        logger.warning("Passed over in DICOM: %d x %s%s.", len(files), what, example)
    return list(found.values())


def _in_file(path: Path) -> list[ScanSource]:
    if path.name == "dataset.json":
        return _in_dataset(path.parent)
    if path.suffix == ".json":
        return _in_nnssl(path)
    reader = reader_of(path)
    if isinstance(reader, SeriesReader):
        return _from_series([reader.series_at(path)])
    return [ScanSource(path, stem(path))] if reader else []


def _in_tree(root: Path, foreign: list[Path], passed: dict[str, list[Path]]) -> list[ScanSource]:
    """Scans in a tree; files that look like scans and that no reader takes are added to ``foreign``, and what
    readers know as something else than scans to ``passed``."""
    scans: list[ScanSource] = []
    files: dict[type[Reader], list[Path]] = {}
    unreadable: list[Path] = []
    for folder, names, is_dataset in _walk(root, unreadable):
        if is_dataset or "pretrain_data.json" in names:
            file = folder / ("dataset.json" if is_dataset else "pretrain_data.json")
            try:
                with readable(file):
                    scans += _in_dataset(folder) if is_dataset else _in_nnssl(file)
            except DataError as error:
                if folder == root:
                    raise
                scans.append(ScanSource(file, file.name, fault=str(error)))
        else:
            for path in (folder / name for name in names):
                try:
                    with readable(path):
                        reader = reader_of(path)
                except DataError as error:
                    scans.append(ScanSource(path, stem(path), fault=str(error)))
                else:
                    if reader:
                        files.setdefault(type(reader), []).append(path)
                    elif unread.looks_like_a_scan(path):
                        foreign.append(path)
    scans += [ScanSource(path, stem(path)) for path in unreadable]
    found: list[ScanSource] = []
    for kind, paths in files.items():
        found += _sources(kind(), paths, passed)
    scans += _placed(found, root)
    return sorted(scans, key=lambda scan: scan.path)


def _placed(scans: Sequence[ScanSource], root: Path) -> list[ScanSource]:
    """Scans that were found below ``root``, with the folders in between that do not hold all of them."""
    below = [scan.path.relative_to(root).parts[:-1] if scan.path != root else () for scan in scans]
    levels = zip(*below, strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels))) if len(scans) > 1 else 0
    return [replace(scan, folders=of[shared:]) for scan, of in zip(scans, below, strict=True)]


def _sources(reader: Reader, files: Sequence[Path], passed: dict[str, list[Path]]) -> list[ScanSource]:
    """The scans in files of one reader; damaged files of series are scans of their own, for their error."""
    if not isinstance(reader, SeriesReader):
        return [ScanSource(path, stem(path)) for path in files]
    listing = reader.list_series(files)
    for what, some in listing.passed.items():
        passed.setdefault(what, []).extend(some)
    return _from_series(listing.series) + [ScanSource(path, stem(path)) for path in listing.damaged]


def _walk(root: Path, unreadable: list[Path]) -> Iterator[tuple[Path, list[str], bool]]:
    """Folders, the names of their files and whether they are datasets; what lies below one belongs to it.

    Folders that cannot be read are added to ``unreadable``.
    """
    seen: set[tuple[int, int]] = set()  # links may lead to one folder twice, or back up
    for folder, subfolders, names in os.walk(
        root, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        try:
            status = os.stat(folder)
        except OSError:  # gone meanwhile
            unreadable.append(Path(folder))
            subfolders.clear()
            continue
        is_new = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        is_dataset = "dataset.json" in names and ("imagesTr" in subfolders or _lists(Path(folder)))
        enter = is_new and not is_dataset and "pretrain_data.json" not in names
        subfolders[:] = sorted(name for name in subfolders if enter and not name.startswith("."))
        if is_new:
            yield Path(folder), sorted(name for name in names if not name.startswith(".")), is_dataset


def _lists(folder: Path) -> bool:
    """Whether a ``dataset.json`` lists the files of its cases."""
    try:
        content = read_json(folder / "dataset.json")
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and LISTED_KEY in content and "channel_names" in content


def _from_series(series: Iterable[Series]) -> list[ScanSource]:
    """Name a series after its folder where it is the only one there, else by its number in the study."""
    folders: dict[Path, list[Series]] = {}
    for one in series:
        folders.setdefault(one.files[0].parent, []).append(one)
    scans = []
    for one in (one for there in folders.values() for one in there):
        there = folders[one.files[0].parent]
        path = one.files[0].parent if len(there) == 1 else one.files[0]
        case = path.name if len(there) == 1 else _name_among(one, there)
        if one.part:
            case += "_" + one.part.replace(" ", "-")
        scans.append(ScanSource(path, case, series=one))
    return scans


def _name_among(one: Series, others: Sequence[Series]) -> str:
    """The number of a series, else its identifier, else its first file: the first that is its alone."""
    if one.number and {other.uid for other in others if other.number == one.number} == {one.uid}:
        return f"series-{one.number}"
    is_alone = [other.uid for other in others if not other.part].count(one.uid) <= 1
    return one.uid if one.uid and is_alone else stem(one.files[0])


def _in_dataset(folder: Path) -> list[ScanSource]:
    """Images of ``imagesTr``, or those listed: each channel a scan, and files without a channel's number, as
    the Medical Segmentation Decathlon has them."""
    dataset = Dataset.images_only(folder)
    if dataset.listed is not None:
        return [
            _of_channel(path, case.name, number, dataset)
            for case in dataset.listed
            for number, path in enumerate(case.image_paths)
        ]
    images = folder / "imagesTr"
    files = [path for path in images.iterdir() if is_volume_name(path)] if images.is_dir() else []
    only = dataset.kinds[0] if len(dataset.kinds) == 1 else None
    scans = []
    for path in sorted(path for path in files if not path.name.startswith(".")):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match and int(match[2]) < len(dataset.kinds):
            scans.append(_of_channel(path, match[1], int(match[2]), dataset))
        else:
            scans.append(ScanSource(path, stem(path), only))
    if not scans:
        raise DataError(f"{images} holds no image; name images CASE_0000{dataset.file_ending}.")
    return scans


def _of_channel(path: Path, case: str, number: int, dataset: Dataset) -> ScanSource:
    if len(dataset.kinds) == 1:
        return ScanSource(path, case, dataset.kinds[0])
    channel = Channel(dataset.path, case, number, dataset.channel_names)
    return ScanSource(path, f"{case}_{number:04d}", dataset.kinds[number], channel=channel)


def _in_nnssl(file: Path) -> list[ScanSource]:
    """Images of nnssl's ``pretrain_data.json``, named collection__dataset__subject__session__image."""
    try:
        content = read_json(file, paths=True, nan=True)
        scans = []
        for dataset_id, dataset in content["datasets"].items():
            for subject_id, subject in dataset["subjects"].items():
                for session_id, session in subject["sessions"].items():
                    for image in session["images"]:
                        names = (
                            content["collection_name"],
                            dataset_id,
                            subject_id,
                            session_id,
                            image["name"],
                        )
                        scans.append(_nnssl_image(file, "__".join(map(str, names)), image))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no list of images as nnssl writes it ({error!r}); correct it.") from error
    return scans


def _nnssl_image(file: Path, case: str, image: dict[str, Any]) -> ScanSource:
    if not Path(image["image_path"]).parts:
        raise DataError(f"{file} gives no image_path for {case}; correct it.")
    modality = str(image.get("modality") or "").strip()
    kind = kind_of_name(modality) if modality else None
    mask = (image.get("associated_masks") or {}).get("anonymization_mask")
    return ScanSource(
        _nnssl_path(file, image["image_path"]),
        case,
        kind,
        anonymised_path=_nnssl_path(file, mask) if mask else None,
    )


def _nnssl_path(file: Path, text: str) -> Path:
    """What a path in a list stands for; nnssl takes its folders, such as $nnssl_raw, from the environment."""
    path = Path(text)
    if text.startswith("$"):  # the folder that holds the dataset's folder
        path = file.parent.parent.joinpath(*path.parts[1:])
    return (file.parent / path).absolute()
