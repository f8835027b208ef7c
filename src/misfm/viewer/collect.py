"""What a path holds, as cases to be looked at: scans, a store, a dataset, predictions or a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from misfm.data.dataset import Case, Dataset
from misfm.data.readers import read_volume, stem
from misfm.data.scan import ScanSource, find_scans
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.evaluation.evaluate import list_cases
from misfm.evaluation.labels import LabelNames, find_label_names
from misfm.viewer.cases import Collection, Image, ViewedCase
from misfm.volume import Volume


class References:
    """Label maps that people drew, by case.

    Args:
        path: folder of label maps, or a single one for whatever is viewed; None looks only where nnU-Net's
            layout has those of a scan.

    Raises:
        DataError: no such folder or file, or no label map in it.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None and not path.exists():
            raise DataError(f"{path} does not exist; give the folder of the reference label maps.")
        self._only = path if path is not None and path.is_file() else None
        self._listed = list_cases(path) if path is not None and path.is_dir() else {}
        self._is_given = path is not None
        self._names: dict[Path, LabelNames | None] = {}

    def find(self, scan: Path | None, *names: str) -> Path | None:
        """Return the label map of a case: of one of its names, or in ``labelsTr`` beside ``imagesTr``."""
        if self._is_given:
            found = (self._listed[name] for name in names if name in self._listed)
            return self._only or next(found, None)
        if scan is None or not scan.parent.name.startswith("images"):
            return None
        folder = scan.parent.with_name(scan.parent.name.replace("images", "labels", 1))
        own, ending = stem(scan), scan.name.removeprefix(stem(scan))
        candidates = (folder / f"{name}{ending}" for name in (own.removesuffix("_0000"), own))
        return next((file for file in candidates if file.is_file()), None)

    def names(self, label_map: Path) -> LabelNames | None:
        """Return what values mean in a label map; None where no ``dataset.json`` says it."""
        folder = label_map.parent
        if folder not in self._names:
            self._names[folder] = None
            with suppress(DataError):  # a dataset.json of something else is no reason to show nothing
                self._names[folder] = find_label_names(folder)
        return self._names[folder]


def scans(path: Path, references: References) -> Collection:
    """The scans in a file, a DICOM folder or a tree.

    Raises:
        DataError: there is none.
    """
    cases = []
    for scan in find_scans([path]):
        label_map = references.find(scan.path, scan.case, scan.case.removesuffix("_0000"))
        known = None if label_map is None else references.names(label_map)
        cases.append(
            ViewedCase(
                scan.case,
                partial(read_scan, scan),
                None if label_map is None else partial(read_volume, label_map),
                labels=None if known is None else known.values,
                ignore=None if known is None else known.ignore,
            )
        )
    return Collection(f"{path}", cases)


def read_scan(scan: ScanSource) -> Image:
    """Read a scan that was found."""
    volume = scan.read()
    return Image(volume, scan.kinds(volume), notes=scan.notes)


def store(path: Path) -> Collection:
    """The volumes of a store.

    Raises:
        DataError: it is damaged, or empty.
    """
    opened = Store.open(path)
    cases = [
        ViewedCase(record.case, *stored(opened, record), notes=[f"Ingested from {record.source}."])
        for record in opened.records()
    ]
    if not cases:
        raise DataError(
            f"The store {path} is empty; bring scans in with 'misfm ingest SOURCE --store {path}'."
        )
    return Collection(f"Store {path}", cases)


def stored(opened: Store, record: Any) -> tuple[Callable[[], Image], Callable[[], Volume] | None]:
    """What reads the image of a volume of a store, and its label map if it has one."""

    def image() -> Image:
        return Image(opened.read(record), record.channel_kinds, record.channel_names)

    return image, None if record.labels is None else partial(opened.read_label, record)


def dataset(path: Path) -> Collection:
    """The cases of a dataset, those to test on, too, where they have label maps.

    Raises:
        DataError: it cannot be used.
    """
    opened = Dataset.open(path)
    cases = [
        of_dataset(opened, case)
        for part in (opened.cases("Tr"), [case for case in opened.cases("Ts") if case.label_path])
        for case in part
    ]
    return Collection(f"Dataset {path}", cases)


def of_dataset(opened: Dataset, case: Case, **more: Any) -> ViewedCase:
    """A case of a dataset; ``more``: further fields."""

    def image() -> Image:
        without_label = Case(case.name, case.image_paths, None)
        volume, _ = opened.read_case(without_label)
        return Image(volume, opened.kinds, opened.channel_names if len(volume.data) > 1 else ())

    reference = None if case.label_path is None else partial(read_volume, case.label_path)
    labels = opened.scheme.values
    return ViewedCase(case.name, image, reference, labels=labels, ignore=opened.ignore_label, **more)


def scans_of(source: str | Sequence[str], path: str, folder: Path) -> list[ScanSource]:
    """Find again the scans that were labelled, one for each channel.

    Args:
        source: file of each, or the UID of its DICOM series, as ``predictions.json`` has them.
        path: file or folder of the first.
        folder: of the predictions, where relative paths may begin, too.

    Raises:
        DataError: one is not where it was.
    """
    found = []
    for known in [source] if isinstance(source, str) else source:
        name, _, part = known.partition("#")
        place = next(
            (
                one
                for text in (known, name, path, path.partition("#")[0])
                for one in (Path(text), folder / text)
                if one.exists()
            ),
            None,
        )
        if place is None:
            raise DataError(f"{path} is not there any more: the scan was moved, or lies on another machine.")
        there = find_scans([place])
        same = [one for one in there if one.series is None or one.series.uid in (name, "")]
        exact = [one for one in same if not part or (one.series and one.series.part == part)]
        if not (exact or same):
            raise DataError(f"{place} does not hold the series {name} any more that was labelled.")
        found.append((exact or same)[0])
    return found


def as_values(labels: Mapping[str, int | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return labels of one value or several with all of their values."""
    return {name: (own,) if isinstance(own, int) else tuple(own) for name, own in labels.items()}
