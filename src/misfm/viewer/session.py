"""What the page asks for: the list of cases, what is known of one, and its files, made on the fly."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.errors import MisfmError
from misfm.evaluation.case import label_values
from misfm.viewer import findings
from misfm.viewer.cases import Collection, Image, Labels, ViewedCase
from misfm.viewer.nifti import MOST_VOXELS, as_nifti, strides, thinned
from misfm.volume import Affine, Volume, empty_volume, grid_difference, triple

LABEL_FILES = ("reference", "prediction", "difference", "outline")


@dataclass
class LabelMaps:
    """The label maps of a case.

    Attributes:
        labels: what they hold.
        shown: those of :data:`LABEL_FILES` there are, (D, H, W) uint8, labels numbered by their places.
        affines: of each of these.
        facts: for the page.
    """

    labels: Labels
    shown: dict[str, NDArray[Any]]
    affines: dict[str, Affine]
    facts: dict[str, Any] = field(default_factory=dict)


class Session:
    """Serves one collection; what was asked for last is kept in memory. Any thread may call.

    Args:
        collection: what is viewed.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._image: tuple[int, Image] | None = None
        self._labels: tuple[int, LabelMaps] | None = None
        self._made: dict[int, tuple[Volume, bytes]] = {}
        self._dice: dict[int, float | None] = {
            n: case.dice for n, case in enumerate(collection.cases) if case.dice is not None
        }
        self._image_lock, self._labels_lock = Lock(), Lock()
        self._scoring = False

    def listing(self) -> dict[str, Any]:
        """The list of cases, in the order of the collection; ``scoring``: whether more Dice will be known."""
        return {
            "title": self.collection.title,
            "notes": list(self.collection.notes),
            "scoring": self._scoring,
            "cases": [
                {
                    "id": number,
                    "name": case.name,
                    "dice": self._dice.get(number),
                    "has": [name for name in ("reference", "prediction") if getattr(case, name) is not None],
                    "is_made": case.is_made and number not in self._made,
                }
                for number, case in enumerate(self.collection.cases)
            ],
        }

    def image_facts(self, number: int, *, most: float = MOST_VOXELS) -> dict[str, Any]:
        """What is known of a scan: grid, channels, windows, middle; ``step``: how ``most`` voxels thin it.

        Raises:
            DataError, OSError: it cannot be read.
        """
        image = self.image(number)
        volume = image.volume
        names = list(image.channels) or [f"channel {n}" for n in range(len(volume.data))]
        return {
            "shape": list(volume.shape),
            "spacing": list(volume.spacing),
            "orientation": volume.orientation,
            "step": max(strides(volume.shape, volume.spacing, most)),
            "channels": [
                {"name": name, "kind": kind, "windows": findings.windows(voxels, kind)}
                for name, kind, voxels in zip(names, image.kinds, volume.data, strict=True)
            ],
            "centre": findings.in_mm(volume, [side // 2 for side in volume.shape]),
            "notes": [*self.collection.cases[number].notes, *image.notes],
        }

    def label_facts(self, number: int) -> dict[str, Any]:
        """What is known of the label maps of a case, once these are read or made; never fails for one."""
        return self.label_maps(number).facts

    def image_file(self, number: int, channel: int, *, most: float = MOST_VOXELS) -> list[memoryview]:
        """A channel of a scan as NIfTI, thinned to ``most`` voxels."""
        volume = self.image(number).volume
        if channel >= len(volume.data):
            raise KeyError(channel)
        return _file(volume.data[channel], volume.affine, most)

    def label_file(self, number: int, name: str, *, most: float = MOST_VOXELS) -> list[memoryview]:
        """One of :data:`LABEL_FILES` in the same way; a KeyError where the case has none."""
        found = self.label_maps(number)
        return _file(found.shown[name], found.affines[name], most)

    def image(self, number: int) -> Image:
        """Read a scan, unless it was the last that was read."""
        with self._image_lock:
            if self._image is None or self._image[0] != number:
                self._image = None  # before the next takes as much memory
                self._image = number, self.collection.cases[number].image()
            return self._image[1]

    def label_maps(self, number: int) -> LabelMaps:
        """Read or make the label maps of a case, unless they were the last."""
        with self._labels_lock:
            if self._labels is None or self._labels[0] != number:
                self._labels = None
                self._labels = number, self._examined(number)
            return self._labels[1]

    def score_in_background(self) -> None:
        """Find the Dice of all cases that have both label maps on disk, while the page is looked at."""
        todo = [
            number
            for number, case in enumerate(self.collection.cases)
            if number not in self._dice and case.reference and case.prediction and not case.is_made
        ]
        if todo:
            self._scoring = True
            Thread(target=self._score, args=(todo,), daemon=True).start()

    def _score(self, numbers: list[int]) -> None:
        for number in numbers:
            if number not in self._dice:
                self._examined(number)  # what is wrong with it is said when the case is opened
        self._scoring = False

    def _examined(self, number: int) -> LabelMaps:
        case = self.collection.cases[number]
        readers: dict[str, Callable[[], Volume]] = {}
        if case.reference is not None:
            readers["reference"] = case.reference
        if case.prediction is not None:
            readers["prediction"] = lambda: self._prediction(number, case)
        found = examine(case, readers)
        if "dice" in found.facts:
            self._dice[number] = found.facts["dice"]
        return found

    def _prediction(self, number: int, case: ViewedCase) -> Volume:
        """The predicted label map; one that was made is kept, packed."""
        assert case.prediction is not None
        if number in self._made:
            grid, packed = self._made[number]
            return grid.with_data(np.frombuffer(zlib.decompress(packed), np.uint16).reshape(grid.shape))
        label_map = case.prediction(lambda: self.image(number))
        if case.is_made:
            voxels = label_values(label_map, "prediction")
            packed = zlib.compress(voxels.astype(np.uint16).tobytes(), 1)
            self._made[number] = empty_volume(label_map.shape, label_map.affine), packed
        return label_map


def _file(voxels: NDArray[Any], affine: Affine, most: float) -> list[memoryview]:
    grid = empty_volume(triple(voxels.shape), affine)
    return as_nifti(*thinned(voxels, affine, strides(grid.shape, grid.spacing, most)))


def examine(case: ViewedCase, readers: Mapping[str, Callable[[], Volume]]) -> LabelMaps:
    """Read the label maps of a case and find out what there is to know.

    Args:
        case: whose they are.
        readers: of ``reference`` and ``prediction``, those there are.

    Returns:
        Label maps; one that cannot be read is missing, and ``facts["faults"]`` has a sentence for it.
    """
    maps, faults = {}, []
    for which, read in readers.items():
        try:
            volume = read()
            maps[which] = volume.with_data(label_values(volume, which))
        except (MisfmError, OSError, ValueError) as error:
            faults.append(f"No {which}: {sentence(error)}")
    labels = findings.labels_in(case.labels, *maps.values(), ignore=case.ignore)
    shown = {which: findings.renumbered(volume, labels) for which, volume in maps.items()}
    found = LabelMaps(labels, shown, {which: volume.affine for which, volume in maps.items()})
    found.facts = {"labels": findings.table_of(labels, maps, case.ignore), "faults": faults}
    if maps:
        first = next(iter(maps))
        found.facts["focus"] = findings.fullest_place(maps[first], shown[first])
    if len(maps) == 2:
        if apart := grid_difference(maps["prediction"], maps["reference"]):
            faults.append(
                f"Reference and prediction cannot be compared: they lie on different grids, {apart}."
            )
        else:
            compare(found, maps["reference"], case.ignore)
    found.facts["has"] = list(shown)
    return found


def compare(found: LabelMaps, reference: Volume, ignore: int | None) -> None:
    """Add to the label maps of a case where they differ, and what there is to know about that."""
    shown, rows = found.shown, found.facts["labels"]
    judged = None if ignore is None else reference.data[0] != ignore
    shown["difference"] = findings.difference(shown["reference"], shown["prediction"], judged)
    shown["outline"] = findings.outline(shown["reference"], findings.slice_axis(reference))
    found.affines.update(difference=reference.affine, outline=reference.affine)
    kinds = range(1, len(findings.DIFFERENCES) + 1)
    counts = [np.count_nonzero(shown["difference"] == kind) for kind in kinds]
    voxel_ml = findings.millilitres(reference)
    found.facts["differences"] = [
        {"name": name, "colour": colour, "ml": int(count) * voxel_ml}
        for (name, colour), count in zip(findings.DIFFERENCES.items(), counts, strict=True)
    ]
    found.facts["worst"] = findings.worst_slice(reference, shown["difference"])
    found.facts["dice"] = findings.mean_dice(rows)


def sentence(error: Exception) -> str:
    """Say what went wrong, for the page."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error)
