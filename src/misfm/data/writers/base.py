"""The contract of all formats that label maps are written in; a new one is one new file in this folder."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.registry import Registry
from misfm.volume import Volume

Labels = Mapping[str, tuple[int, ...]]
"""Name of each label to its values in the label map, the background left out; a region has several."""


@dataclass(frozen=True)
class LabelledScan:
    """A label map with what a file may say of it.

    Attributes:
        label_map: (1, D, H, W) of whole numbers.
        labels: their names.
        scan: what was labelled, its first channel.
        weights: what it was labelled with: hashes by what the weights are called.
    """

    label_map: Volume
    labels: Labels
    scan: ScanSource
    weights: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Hash of the voxels and their place."""
        found = hashlib.sha256(np.ascontiguousarray(self.label_map.data).tobytes())
        found.update(self.label_map.affine.tobytes())
        return found.hexdigest()

    @property
    def volume_ml(self) -> dict[str, float]:
        """Millilitres of each label."""
        values, counts = np.unique(self.label_map.data, return_counts=True)
        num_voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        voxel_ml = abs(float(np.linalg.det(self.label_map.affine[:3, :3]))) / 1000
        return {
            name: round(sum(num_voxels.get(value, 0) for value in of) * voxel_ml, 6)
            for name, of in self.labels.items()
        }


class MaskWriter(ABC):
    """Writes label maps in a format."""

    suffix: ClassVar[str]
    """What the names of its files end on."""

    def check(self, scan: ScanSource) -> None:  # noqa: B027, most formats can hold any
        """Check that the label map of a scan can be written, before the work of making it.

        Raises:
            DataError: it cannot; the sentence says in which format instead.
        """

    def values(self, labels: Labels) -> dict[str, int | list[int]]:
        """Return what stands for each label in the files: the values of the label map, if nothing else."""
        return {name: of[0] if len(of) == 1 else list(of) for name, of in labels.items()}

    @abstractmethod
    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write one file, whole or not at all (:mod:`misfm.files`).

        Args:
            path: ends on the suffix.
            labelled: the label map.

        Raises:
            DataError: labels that the format cannot hold, or a folder that cannot be written.
        """

    def write_shared(self, folder: Path, labels: Labels) -> None:  # noqa: B027, most have nothing to share
        """Write what all label maps of a folder share, such as a table of names."""


def numbered(labels: Labels) -> dict[str, int | list[int]]:
    """Labels counted from 1, for formats that do not keep the values of a label map."""
    return {name: number for number, name in enumerate(labels, 1)}


def overlap(labels: Labels) -> bool:
    """Whether a voxel may have several labels: regions share values."""
    values = [value for of in labels.values() for value in of]
    return len(values) > len(set(values))


def label_voxels(path: Path, label_map: Volume) -> NDArray[Any]:
    """The voxels (D, H, W) of a label map in the smaller type that holds them.

    Raises:
        DataError: negative labels, or some beyond int16; it names ``path``, which cannot be written.
    """
    labels: NDArray[Any] = label_map.data[0]
    highest = np.iinfo(np.int16).max
    if labels.min() < 0 or labels.max() > highest:
        raise DataError(f"{path} cannot be written: labels must lie between 0 and {highest}.")
    return labels.astype(np.uint8 if labels.max() <= 255 else np.int16)


WRITERS: Registry[type[MaskWriter]] = Registry("format of label maps", "misfm.data.writers")
