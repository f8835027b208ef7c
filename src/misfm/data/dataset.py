"""Labelled datasets in nnU-Net format, read as they are: dataset.json beside imagesTr, labelsTr, imagesTs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from misfm.data.case_files import Case, Part, find_cases, parse_listed
from misfm.data.case_notes import check_cases, guess_subject, parse_annotated, parse_subjects
from misfm.data.dataset_json import parse_channels, parse_file_ending, parse_labels, read_dataset_json
from misfm.data.intensity import Kind, kind_of_name
from misfm.data.label_scheme import LabelScheme, whole
from misfm.data.readers import read_volume
from misfm.data.splits import Split, read_split
from misfm.errors import ConfigError, DataError
from misfm.volume import Volume, grid_difference

__all__ = ["Case", "Dataset", "check_grid"]


@dataclass(frozen=True)
class Dataset:
    """A folder in nnU-Net format.

    Attributes:
        path: the folder.
        channel_names: "CT", "T1", ... in the order of the channels.
        scheme: the labels and their values in label maps.
        file_ending: of images and label maps.
        annotated: labels that were contoured, by their values in a mask 0 included, where not all were.
        subjects: of the cases of which ``dataset.json`` tells it; see :meth:`subject`.
        listed: training cases whose files ``dataset.json`` lists; None where they are those in ``imagesTr``.
    """

    path: Path
    channel_names: tuple[str, ...]
    scheme: LabelScheme
    file_ending: str
    annotated: Mapping[str, frozenset[int]] = field(default_factory=dict)
    subjects: Mapping[str, str] = field(default_factory=dict)
    listed: tuple[Case, ...] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Read ``dataset.json`` of version 2 (or 1: ``modality``, labels under their numbers).

        Raises:
            DataError: no such file, or one that does not say channels, labels and the notes on single cases
                (see :mod:`misfm.data.case_notes`) properly.
        """
        path = Path(path)
        file = path / "dataset.json"
        content = read_dataset_json(file)
        names = parse_channels(content, file)
        scheme = parse_labels(content, file)
        _check_scheme(scheme, file)
        annotated = parse_annotated(content, {name: code for code, name in scheme.names.items()}, file)
        subjects, ending = parse_subjects(content, file), parse_file_ending(content, file)
        listed = parse_listed(content, len(names), file)
        dataset = cls(path, names, scheme, ending, annotated, subjects, listed)
        if annotated or subjects:
            known = (case.name for case in (*dataset.cases("Tr"), *dataset.cases("Ts")))
            check_cases((*annotated, *subjects), known, file)
        return dataset

    @classmethod
    def images_only(cls, path: str | Path) -> Dataset:
        """Read what ``dataset.json`` says of the images; labels of any kind, regions too, are passed over.

        Raises:
            DataError: no such file, or one that does not name the channels.
        """
        path = Path(path)
        file = path / "dataset.json"
        content = read_dataset_json(file)
        names = parse_channels(content, file)
        listed = parse_listed(content, len(names), file)
        return cls(path, names, LabelScheme(values={}), parse_file_ending(content, file), listed=listed)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of each channel, by its name; see :func:`misfm.data.intensity.kind_of_name`."""
        return tuple(kind_of_name(name) for name in self.channel_names)

    @property
    def label_names(self) -> dict[int, str]:
        """Name of each label by its value in a mask, background included, the ignored label left out."""
        return self.scheme.names

    @property
    def ignore_label(self) -> int | None:
        """Value of voxels that training and evaluation leave out, if there is one."""
        return self.scheme.ignore

    def subject(self, case_name: str) -> str:
        """Whose scan a case is: as ``dataset.json`` says, else ``sub-XXX`` before the name, else its name."""
        return self.subjects.get(case_name) or guess_subject(case_name)

    def annotated_labels(self, case_name: str) -> frozenset[int]:
        """Labels that were contoured in a case, by their values in a mask, 0 included."""
        return self.annotated.get(case_name, frozenset(self.label_names))

    def cases(self, part: Part = "Tr") -> list[Case]:
        """Cases to train on (those listed in ``dataset.json``, else of ``imagesTr``) or of ``imagesTs``.

        Ordered by name; see :func:`misfm.data.case_files.find_cases`.

        Raises:
            DataError: no case to train on, an image of a channel that dataset.json does not name, or a name
                that is no text.
        """
        if part == "Tr" and self.listed is not None:
            return list(self.listed)
        return find_cases(self.path, part, self.channel_names, self.file_ending)

    def splits(self) -> list[Split]:
        """Folds of ``splits_final.json`` as {"train": names, "val": names}; empty without that file.

        Raises:
            DataError: a damaged file, or one that names cases the dataset has not.
        """
        file = self.path / "splits_final.json"
        if not file.exists():
            return []
        try:
            splits = read_split(file)
        except ConfigError as error:
            raise DataError(str(error)) from error
        known = {case.name for case in self.cases("Tr")}
        unknown = sorted({name for fold in splits for part in fold.values() for name in part} - known)
        if unknown:
            raise DataError(
                f"{file} names cases that are not in imagesTr ({', '.join(unknown[:5])}); correct it."
            )
        return splits

    def read_case(
        self, case: Case, read: Callable[[Path], Volume] = read_volume
    ) -> tuple[Volume, Volume | None]:
        """Read and check a case.

        Args:
            case: one of :meth:`cases`.
            read: reads an image, where it may have been read before.

        Returns:
            Image (C, D, H, W) and label map (1, D, H, W) on the same grid, or None without one.

        Raises:
            DataError: a missing or damaged file, channels or label map on another grid than the first
                channel, label values that dataset.json does not name or lists as not annotated.
        """
        for number, file in enumerate(case.image_paths):
            if not file.exists():
                name = self.channel_names[number]
                raise DataError(
                    f"{file} is missing: channel {number} ({name}) of case {case.name}; add the file."
                )
        channels = [read(file) for file in case.image_paths]
        for file, channel in zip(case.image_paths[1:], channels[1:], strict=True):
            check_grid(file, channel, case.image_paths[0], channels[0])
        kind = np.result_type(*(channel.data.dtype for channel in channels))
        data = np.concatenate([channel.data for channel in channels]).astype(kind, copy=False)
        image = channels[0].with_data(data)
        if case.label_path is None:
            return image, None
        label = read_volume(case.label_path)
        check_grid(case.label_path, label, case.image_paths[0], image)
        return image, Volume(self._check_labels(label, case), image.affine)

    def check_values(self, found: Collection[int]) -> None:
        """Check that values which leave a gap before them are in some label map, or they are likely wrong.

        Label maps are renumbered for other programs, and ``dataset.json`` is forgotten. A label whose number
        follows from the others may occur in no case, and so may a value of regions, listed on purpose.

        Args:
            found: values known to occur; only where some are missing are label maps read.

        Raises:
            DataError: no label map of ``labelsTr`` has such a value, or one cannot be read.
        """
        known = () if self.scheme.has_regions else self.scheme.known
        beyond = [value for place, value in enumerate(known) if value != place]
        missing = set(beyond) - set(found)
        for case in self.cases() if missing else ():
            if case.label_path is not None:
                missing -= set(np.rint(np.unique(read_volume(case.label_path).data)).tolist())
            if not missing:
                return
        if missing:
            value = min(missing)
            name = self.scheme.naming(value)
            raise DataError(
                f"{self.path / 'dataset.json'} gives '{name}' the value {value}, which no label map has: "
                "correct the value, or take the label out."
            )

    def _check_labels(self, label: Volume, case: Case) -> Any:
        path, annotated = case.label_path, self.annotated_labels(case.name)
        voxels = whole(label.data)
        if voxels is None:
            raise DataError(f"{path} has label values that are not whole numbers; it is no label map.")
        values = [int(value) for value in np.unique(voxels)]
        known = {*self.scheme.known, *(() if self.ignore_label is None else (self.ignore_label,))}
        if unknown := [str(value) for value in values if value not in known]:
            raise DataError(
                f"{path} has labels that dataset.json does not name ({', '.join(unknown[:8])}); add them "
                "there or correct the label map."
            )
        contoured = {value for code in annotated - {0} for value in self.scheme.by_code[code]}
        for value in values:
            if value not in contoured | {0, self.ignore_label}:
                raise DataError(
                    f"{path} holds the label '{self.scheme.naming(value)}', which dataset.json does not "
                    f"list among the annotated_labels of {case.name}; add it there or correct the label map."
                )
        return voxels.astype(np.uint8 if max(known) <= 255 else np.int16)


def _check_scheme(scheme: LabelScheme, path: Path) -> None:
    """Refuse labels that a network cannot be trained on."""
    if scheme.background is None or not scheme.values:
        raise DataError(
            f"{path} must name the background, which is 0, and a label beside it: write "
            '{"background": 0, "liver": 1}.'
        )
    if scheme.ignore is not None and scheme.ignore <= max(scheme.known):
        raise DataError(
            f"{path} gives 'ignore' the value {scheme.ignore}; it must be above all other labels."
        )


def check_grid(path: Path, volume: Volume, reference_path: Path, reference: Volume) -> None:
    """Raise a DataError unless a volume lies on the grid of a reference; see :func:`grid_difference`."""
    if difference := grid_difference(volume, reference):
        raise DataError(
            f"{path} lies on another grid than {reference_path.name}: {difference}; resample it to the image "
            "or correct its header."
        )
