"""The contract every export format follows; a new format is one new file in this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from misfm.models.base import SegmentationModel
from misfm.registry import Registry
from misfm.volume import Shape
from misfm.weights.file import WeightsInfo
from misfm.weights.nnunet_plans import DatasetPlans
from misfm.weights.transfer import BACKBONE, AdaptedEntry, Entry, TransferReport


@dataclass(frozen=True)
class ExportedModel:
    """A network with weights, and what became of them.

    Attributes:
        model: without deep supervision.
        info: description of the weights, sizes and options being those of the model.
        patch_size: voxels (D, H, W) the model was built for.
        report: which of its tensors come from the source, the head included.
        plans: of the dataset that the weights are meant for, where one was named.
    """

    model: SegmentationModel
    info: WeightsInfo
    patch_size: Shape
    report: TransferReport
    plans: DatasetPlans | None = None

    @property
    def taken(self) -> set[str]:
        """Names of the tensors that come from the source."""
        entries: list[Entry | AdaptedEntry] = [*self.report.loaded, *self.report.adapted]
        return {entry.name for entry in entries}

    @property
    def labels(self) -> bool:
        """Whether it was trained on label maps, and all of it comes from the source."""
        return self.info.pretext is None and bool(self.info.rules) and not self.report.reinitialised

    @property
    def fresh_parts(self) -> list[str]:
        """A sentence on the parts of the backbone that do not come from the source, or nothing."""
        fresh = [entry.name for entry in self.report.reinitialised if entry.name.startswith(BACKBONE)]
        parts = sorted({name.split(".")[1] for name in fresh})
        if not fresh:
            return []
        what = f"{len(fresh)} tensors of the {' and '.join(parts)}"
        return [f"{what} are not in the source and start untrained."]

    @property
    def clean_up(self) -> list[str]:
        """A sentence on the labels that misfm cleans up after the network, or nothing."""
        names = ", ".join(self.info.largest_part_names)
        what = f"misfm predicts only the largest connected part of {names}"
        return [f"{what}; what uses these files has to see to that itself."] if names else []


class ExportFormat(ABC):
    """Writes weights in the form of another tool."""

    takes_patch_size: ClassVar[bool] = True
    """Whether what is written depends on the patch size, so that ``--patch-size`` has a meaning."""
    takes_dataset: ClassVar[bool] = False
    """Whether it wants the plans of a dataset in ``nnUNet_preprocessed`` (``--dataset``)."""
    cleans_up: ClassVar[bool] = False
    """Whether what reads it keeps the largest parts of the labels that the description names."""

    @abstractmethod
    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write a file, or several into a folder, each whole or not at all (:mod:`misfm.files`).

        Args:
            exported: the network and what is known of its weights; it may be changed.
            out: the file or folder, made where missing.

        Returns:
            The files written.

        Raises:
            ConfigError: a package is missing.
            WeightsError: weights that the format cannot hold.
            DataError: ``out`` cannot be written.
        """


EXPORTS: Registry[type[ExportFormat]] = Registry("export to", "misfm.weights.exports")
