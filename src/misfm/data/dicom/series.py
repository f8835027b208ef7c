"""DICOM files to series: whose they are, which images make one scan, and what is no scan at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import UID

from misfm.data.checks import readable
from misfm.data.dicom.files import is_dicom, quietly, read_header
from misfm.data.dicom.frames import TAGS, Frame, frames_of
from misfm.data.dicom.grid import Grid, grid_of, is_copy, read_frames, without_copies
from misfm.data.dicom.parts import SEVERAL, by_plane, by_volume, is_stack
from misfm.data.dicom.pixels import Pixels
from misfm.data.readers.base import Listing, Series
from misfm.errors import DataError
from misfm.volume import Volume

SINGLE = "2D image that stands alone, such as a scout"
LOCALIZER = "image of a localizer"
SCREENSHOT = "secondary capture or screenshot"
COLOUR = "colour image"
DOSE = "dose distribution"
LABELS = "label object (SEG, RTSTRUCT)"
FLAT = "2D image of another kind"
OTHER = "object without images, such as a report or plan"
"""What is passed over where scans are looked for."""

_IMAGES = "1.2.840.10008.5.1.4.1.1."
_SCANS = {
    _IMAGES + ending
    for ending in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130", "20", "13.1.1", "13.1.2")
}
"""Kinds of objects that are slices of scans: CT, MR, PET, NM and cone-beam CT, classic and enhanced."""
_LABELS = {_IMAGES + ending for ending in ("66.4", "66.7", "481.3")}
_DOSE = _IMAGES + "481.2"
_LEAST = 5
"""Slices in a folder that are a scan of their own where neither numbers nor thickness tell."""


@dataclass(frozen=True)
class DicomSeries(Series):
    """The images of one scan; its modality is a hint, for some exporters write CT for anything.

    Attributes:
        frames: which images of the one file there are; None: all of all files.
        frame_of_reference: DICOM's FrameOfReferenceUID; empty where there is none.
    """

    frames: tuple[int, ...] | None = None
    frame_of_reference: str = ""

    @property
    @quietly
    def number(self) -> str:
        """DICOM's SeriesNumber."""
        with suppress(DataError), readable(self.files[0]):
            return str(read_header(self.files[0], ["SeriesNumber"]).get("SeriesNumber") or "")
        return ""

    @quietly
    def read(self) -> Volume:
        """Read the scan, on an even and upright grid; see :func:`misfm.data.dicom.grid.read_frames`."""
        self.notes.clear()
        return read_frames(self.images(), self.files[0].parent, self.modality, self.notes)

    @quietly
    def grid(self) -> Grid:
        """The grid that :meth:`read` brings its images onto."""
        images = without_copies(self.images(), Pixels(), [])
        return grid_of(images, self.files[0].parent, [])

    @quietly
    def images(self) -> list[Frame]:
        """Where its images lie, in the order of files; no pixels are read.

        Raises:
            DataError: a damaged file, or an image whose place in the patient is unknown.
        """
        found = [frame for file in self.files for frame in frames_of(file, read_header(file, TAGS))]
        return found if self.frames is None else [one for one in found if one.index in self.frames]


@dataclass(frozen=True, eq=False)
class _Member:
    """A file of a series; without frames where their place is unknown. Files of one key are one series."""

    file: Path
    frames: tuple[Frame, ...]
    modality: str | None
    owner: tuple[str, str, str]
    num_frames: int
    key: tuple[str, ...]
    frame_of_reference: str
    number: str
    thickness: float


@quietly
def list_series(files: Iterable[Path]) -> Listing:
    """Group DICOM images by patient, study and series, and by folder where two scans share all of these.

    Files with many images are scans of their own. Where several images lie in one place, as in series over
    time, what tells them apart makes scans of them, too. Objects that are no scans are passed over.
    """
    damaged: list[Path] = []
    passed: dict[str, list[Path]] = {}
    groups: dict[tuple[str, ...], list[_Member]] = {}
    for file in sorted(files):
        try:
            found = _examine(file)
        except DataError:
            damaged.append(file)
            continue
        if isinstance(found, str):
            passed.setdefault(found, []).append(file)
        else:
            groups.setdefault(found.key, []).append(found)
    series = [
        one for group in groups.values() for folder in _by_folder(group) for one in _scans(folder, passed)
    ]
    return Listing(sorted(series, key=lambda one: one.files), damaged, passed)


@quietly
def series_at(path: Path) -> Series:
    """Return the series of a directory that holds one, or the series that one file belongs to.

    Raises:
        DataError: no series there, or several in a directory.
    """
    folder = path if path.is_dir() else path.parent
    found = list_series(file for file in folder.iterdir() if file.is_file() and is_dicom(file))
    if path.is_dir():
        for file in found.damaged:
            _examine(file)
        if len(found.series) > 1:
            examples = ", ".join(f"{one.files[0].name} {one.part}".strip() for one in found.series[:4])
            raise DataError(
                f"{path} holds {len(found.series)} DICOM series; give one file of the wanted one "
                f"({examples})."
            )
        if not found.series:
            raise DataError(f"{path} holds no DICOM image series that is a 3D scan{_of(found.passed)}.")
        return found.series[0]
    series = [one for one in found.series if path in one.files]
    if len(series) > 1:
        parts = ", ".join(one.part for one in series[:4])
        raise DataError(
            f"{path} holds {len(series)} scans ({parts}); bring them into a store by misfm ingest, or split "
            "the file."
        )
    if not series:
        if path in found.damaged:
            _examine(path)
        what = next((reason for reason, files in found.passed.items() if path in files), FLAT)
        raise DataError(f"{path} is no 3D scan but a {what}; give a file of a scan.")
    return series[0]


def _of(passed: Mapping[str, Sequence[Path]]) -> str:
    counts = ", ".join(f"{len(files)} x {reason}" for reason, files in passed.items())
    return (
        f": it holds {counts}; give a scan" if counts else "; give a scan or a folder with the slices of one"
    )


def _no_scan(header: Any) -> str:
    """Why an object is no part of a scan, or nothing."""
    kind = str(header.get("SOPClassUID") or "")
    is_placed = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
    if kind in _LABELS:
        return LABELS
    if kind == _DOSE:
        return DOSE
    if "Rows" not in header and "Columns" not in header:
        return OTHER
    if int(header.get("SamplesPerPixel") or 1) > 1 and not (kind in _SCANS and is_placed):
        return COLOUR
    if kind and kind not in _SCANS and not is_placed:
        return SCREENSHOT if "Secondary Capture" in UID(kind).name else FLAT
    is_localizer = "LOCALIZER" in [str(word).upper() for word in header.get("ImageType") or ()]
    return LOCALIZER if is_localizer else ""


def _examine(file: Path) -> _Member | str:
    """Read the header of a file; of what is no part of a scan return why.

    Raises:
        DataError: it is damaged.
    """
    with readable(file):  # pydicom parses a value when it is asked for
        header = read_header(file, [*TAGS, "InstanceNumber", "SliceThickness"])
        if reason := _no_scan(header):
            return reason
        patient_id, *person = (
            str(header.get(tag) or "") for tag in ("PatientID", "PatientName", "PatientBirthDate")
        )
        uid, study_uid = (str(header.get(tag) or "") for tag in ("SeriesInstanceUID", "StudyInstanceUID"))
        reference = str(header.get("FrameOfReferenceUID") or "")
        modality, count = header.get("Modality"), int(header.get("NumberOfFrames") or 1)
        whole = str(header.get("ConcatenationUID") or file)
        number = str(header.get("InstanceNumber") or "")
    try:
        frames = tuple(frames_of(file, header))
    except DataError:  # said when it is read
        frames = ()
    # Where an anonymiser emptied the identifier, the files of one folder are taken as one series.
    key = (patient_id, *person, study_uid, uid or str(file.parent), whole if len(frames) > 1 else "")
    return _Member(
        file,
        frames,
        modality if isinstance(modality, str) else None,  # several values at once are no hint
        (uid, study_uid, patient_id),
        count,
        key,
        reference,
        number,
        _thickness(header),
    )


def _thickness(header: Any) -> float:
    """Of a slice in millimetres; 0 where nothing sensible is said."""
    try:
        return float(header.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        return 0.0


def _by_folder(group: Sequence[_Member]) -> list[list[_Member]]:
    """The files of a series, apart by folder where they are scans of several patients with the same names.

    Exports spread the slices of one scan over folders, too: then no folder alone has an even stack.
    """
    folders: dict[Path, list[_Member]] = {}
    for member in group:
        folders.setdefault(member.file.parent, []).append(member)
    if len(folders) == 1:
        return [list(group)]
    seen: dict[tuple[Any, ...], Frame] = {}
    unique: dict[Path, list[tuple[Frame, _Member]]] = {folder: [] for folder in folders}
    pixels = Pixels()
    for member in group:
        for frame in member.frames:
            other = seen.setdefault(frame.identity, frame)
            if other is frame or not _is_copy(frame, other, pixels):
                unique[member.file.parent].append((frame, member))
    kept = [found for found in unique.values() if found]
    stacks = [[frame for frame, _ in found] for found in kept]
    own = [frame.place for frames in stacks for frame in frames]
    if len(set(own)) < len(own):
        is_apart = all(len({frame.place for frame in frames}) == len(frames) for frames in stacks)
    else:
        is_apart = _are_scans(kept, stacks)
    return list(folders.values()) if is_apart else [list(group)]


def _is_copy(frame: Frame, other: Frame, pixels: Pixels) -> bool:
    try:
        return is_copy(frame, other, pixels)
    except DataError:  # said when it is read
        return True


def _are_scans(kept: Sequence[Sequence[tuple[Frame, _Member]]], stacks: Sequence[Sequence[Frame]]) -> bool:
    """Whether the images of every folder, none in the place of another, are a scan of their own."""
    if len(stacks) < 2 or any(len(frames) < SEVERAL for frames in stacks):
        return False
    every = [frame for frames in stacks for frame in frames]
    is_one = is_stack(every)
    if is_one and not _overlap(stacks):
        return False
    numbers = [[member.number for _, member in found] for found in kept]
    drawn = [number for some in numbers for number in some]
    if all(len(set(some)) == len(some) for some in numbers) and len(set(drawn)) < len(drawn):
        return True  # each is counted from the start
    if not all(map(is_stack, stacks)):
        return False
    if is_one and all(number.isdecimal() for number in drawn):
        order = np.argsort([frame.position @ every[0].normal for frame in every])
        steps = np.diff(np.array(drawn, float)[order])
        if (steps > 0).all() or (steps < 0).all():
            return False  # one count runs through all folders
    thickness = kept[0][0][1].thickness
    if is_one and thickness > 0:
        alone, together = (float(np.diff(_distances(frames)).mean()) for frames in (stacks[0], every))
        return abs(alone - thickness) < abs(together - thickness)
    return not is_one or all(len(frames) >= _LEAST for frames in stacks)


def _distances(frames: Sequence[Frame]) -> list[float]:
    normal = frames[0].normal
    return sorted(float(frame.position @ normal) for frame in frames)


def _overlap(stacks: Sequence[Sequence[Frame]]) -> bool:
    """Whether slices of one stack lie between those of another."""
    normal = stacks[0][0].normal
    ends = []
    for frames in stacks:
        along = [float(frame.position @ normal) for frame in frames]
        ends.append((min(along), max(along)))
    ends.sort()
    return any(later[0] < earlier[1] for earlier, later in pairwise(ends))


def _scans(group: Sequence[_Member], passed: dict[str, list[Path]]) -> list[Series]:
    """The scans in the files of one series of one patient."""
    if not all(member.frames for member in group):
        return [_series(group, [member.file for member in group])]
    frames = [frame for member in group for frame in member.frames]
    volumes = [
        (" ".join(filter(None, (plane, name))), some)
        for plane, alike in by_plane(frames)
        for name, some in by_volume(alike)
    ]
    single = [some[0].file for _, some in volumes if len(some) == 1]
    if single:
        passed.setdefault(SINGLE, []).extend(single)
    volumes = [(name, some) for name, some in volumes if len(some) > 1]
    scans: list[Series] = []
    for name, some in volumes:
        files = list(dict.fromkeys(frame.file for frame in some))
        whole = sum(member.num_frames for member in group if member.file in files) == len(some)
        if not whole and len(files) > 1 and any(member.num_frames > 1 for member in group):
            return [_series(group, [member.file for member in group])]  # refused when it is read
        indices = None if whole else tuple(frame.index for frame in some)
        scans.append(_series(group, files, name if len(volumes) > 1 else "", indices))
    return scans


def _series(
    group: Sequence[_Member], files: Sequence[Path], part: str = "", frames: tuple[int, ...] | None = None
) -> Series:
    first = next(member for member in group if member.file == files[0])
    uid, study_uid, patient_id = first.owner
    return DicomSeries(
        uid,
        tuple(files),
        first.modality,
        study_uid,
        patient_id,
        part,
        frames=frames,
        frame_of_reference=first.frame_of_reference,
    )
