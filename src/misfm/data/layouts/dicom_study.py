"""DICOM studies: series with the SEG and RTSTRUCT that refer to them, wherever the files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from misfm.data.case_notes import ANNOTATED_KEY, SUBJECTS_KEY
from misfm.data.dicom import DicomSeries, is_dicom, label_names, list_series, pair, read_labels
from misfm.data.dicom.series import LABELS
from misfm.data.layouts.assembly import walk
from misfm.data.layouts.base import LAYOUTS, Arrangement, FoundCase, Piece
from misfm.data.readers import is_volume_name
from misfm.errors import DataError
from misfm.terminal import logger
from misfm.text import one_line
from misfm.volume import Volume

_PARTLY = (
    f"Structures that a case has not are taken as not drawn, not as absent ({ANNOTATED_KEY} in dataset.json)."
)


@LAYOUTS.register("dicom-study")
def dicom_study(folder: Path) -> Arrangement | None:
    """Recognise a tree of DICOM in which a SEG or RTSTRUCT refers to a series."""
    found = list_series(_files(folder))
    objects = found.passed.get(LABELS, [])
    series = [one for one in found.series if isinstance(one, DicomSeries)]
    if not objects or not series:
        return None
    pairs, alone = pair(objects, series)
    labelled = [(one, [path for path, other in pairs.items() if other is one]) for one in series]
    labelled = [(one, paths) for one, paths in labelled if paths]
    if not labelled:
        raise DataError(
            f"{folder} holds DICOM, but no SEG or RTSTRUCT refers to a series in it; add those series."
        )
    drawn = [sorted({name for path in paths for name in label_names(path, one)}) for one, paths in labelled]
    values = {name: value for value, name in enumerate(sorted(set().union(*drawn) - {"background"}), start=1)}
    cases = []
    for name, (one, paths) in zip(_names(folder, labelled), labelled, strict=True):
        place = one.files[0] if len(one.files) == 1 else one.files[0].parent
        image = Piece(place, read=partial(_read_image, one, name), made_of=tuple(one.files))
        read = partial(_read_label, one, tuple(paths), values, name)
        label = Piece(paths[0], read=read, made_of=(*paths, *one.files))
        cases.append(FoundCase(name, (image,), label))
    partly = _annotated(cases, drawn, len(values))
    return Arrangement(
        "DICOM; label maps are SEG and RTSTRUCT, each of the series that it refers to",
        (_modality(folder, [one for one, _ in labelled]),),
        tuple(cases),
        labels={"background": 0, **values},
        more={SUBJECTS_KEY: _subjects([one for one, _ in labelled], cases), **partly},
        notes=(*_left_out(len(series) - len(labelled), alone), *([_PARTLY] if partly else [])),
        by_name=True,
    )


def _files(folder: Path) -> list[Path]:
    found = []
    for place, _, names in walk(folder):
        paths = (place / name for name in names)
        found += [path for path in paths if not is_volume_name(path) and is_dicom(path)]
    return found


def _names(folder: Path, labelled: Sequence[tuple[DicomSeries, list[Path]]]) -> list[str]:
    """Names of cases, by the folders that the series lie in; with a number where several lie in one."""
    names: list[str] = []
    for one, _ in labelled:
        below = one.files[0].parent.relative_to(folder).parts
        wanted = name = one_line("_".join([*(below or (folder.name,)), *filter(None, [one.part])]))
        number = 1
        while name in names:
            number += 1
            name = f"{wanted}-{number}"
        names.append(name)
    return names


def _subjects(series: Sequence[DicomSeries], cases: Sequence[FoundCase]) -> dict[str, str]:
    """Numbers for the patients, so that no split divides one; their identifiers stay in the DICOM."""
    keys = [one.patient_id or one.study_uid or one.uid for one in series]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys), start=1)}
    return {case.name: f"subject-{numbers[key]:03d}" for case, key in zip(cases, keys, strict=True)}


def _annotated(
    cases: Sequence[FoundCase], drawn: Sequence[Sequence[str]], number: int
) -> dict[str, dict[str, list[str]]]:
    """The structures that were drawn in each case that has not all of them; nothing where all have all."""
    partly = {
        case.name: [name for name in names if name != "background"]
        for case, names in zip(cases, drawn, strict=True)
    }
    partly = {case: names for case, names in partly.items() if len(names) < number}
    return {ANNOTATED_KEY: partly} if partly else {}


def _modality(folder: Path, series: Sequence[DicomSeries]) -> str | None:
    kinds = sorted({one.modality or "" for one in series})
    if len(kinds) > 1:
        raise DataError(
            f"{folder} has labelled series of several modalities ({one_line(', '.join(kinds))}); put those "
            "of each into a folder of its own."
        )
    return kinds[0] if kinds[0] in ("CT", "MR") else None


def _left_out(num_unlabelled: int, alone: Sequence[Path]) -> tuple[str, ...]:
    notes = []
    if num_unlabelled:
        notes.append(f"{num_unlabelled} series without SEG or RTSTRUCT are left out.")
    if alone:
        names = ", ".join(one_line(path.name) for path in alone[:4])
        notes.append(
            f"{len(alone)} label object(s) refer to no series here, or to several, and are left out: {names}."
        )
    return tuple(notes)


def _read_image(series: DicomSeries, name: str) -> Volume:
    volume = series.read()
    for note in series.notes:
        logger.warning("%s: %s", name, note)
    return volume


def _read_label(series: DicomSeries, paths: Sequence[Path], values: Mapping[str, int], name: str) -> Volume:
    """The structures of all objects of a series in one label map, the smallest on top."""
    notes: list[str] = []
    drawn: list[tuple[int, int, Volume, int]] = []
    by_name: dict[str, Path] = {}
    for path in paths:
        volume, names = read_labels(path, series, notes=notes)
        counts = np.bincount(volume.data.ravel(), minlength=max(names) + 1)
        for value, label in names.items():
            if label == "background":
                continue
            if label in by_name:
                raise DataError(
                    f"{path} and {by_name[label].name} both have '{label}' of one series; leave out one "
                    "of them."
                )
            by_name[label] = path
            drawn.append((int(counts[value]), values[label], volume, value))
    for note in notes:
        logger.warning("%s: %s", name, note)
    data = np.zeros_like(drawn[0][2].data, np.uint8 if max(values.values()) <= 255 else np.int16)
    for _, target, volume, value in sorted(drawn, key=lambda one: one[0], reverse=True):
        data[volume.data == value] = target
    return drawn[0][2].with_data(data)
