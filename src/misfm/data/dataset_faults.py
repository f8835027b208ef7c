"""What is wrong with a dataset: by its names, by the headers of its files, and by all of their voxels.

It is what nnU-Net's ``--verify_dataset_integrity`` looks at, but every fault is told, and at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from misfm.data.case_files import Case, Part, passed_over
from misfm.data.dataset import Dataset, check_grid
from misfm.data.dataset_json import read_dataset_json
from misfm.data.readers import read_grid, read_volume
from misfm.errors import DataError
from misfm.text import one_line
from misfm.volume import Volume

NUM_TRAINING_KEY = "numTraining"
_NAMED = 8
"""Cases or files that a sentence names."""


def doubts(dataset: Dataset) -> list[str]:
    """Say what names of files and ``dataset.json`` tell that a training would pass over, in a sentence each.

    That is images without label map, label maps without image, files with other names, and another number of
    cases than ``numTraining``.

    Raises:
        DataError: see :meth:`misfm.data.dataset.Dataset.cases`.
    """
    training = dataset.cases("Tr")
    return [
        *_unlabelled(dataset, training),
        *_left_over(dataset, "Tr", training),
        *_left_over(dataset, "Ts", dataset.cases("Ts")),
        *_announced(dataset, training),
    ]


def faults(
    dataset: Dataset, *, voxels: bool = False, progress: Callable[[int, int], object] | None = None
) -> list[str]:
    """Say everything that is wrong with a dataset, in a sentence each that names the file.

    Args:
        dataset: to look at.
        voxels: whether to read all voxels, for values that are not finite and labels that have no name;
            without, headers alone are read.
        progress: called with cases done and all cases after each.

    Returns:
        :func:`doubts`, files that are missing or cannot be read, channels and label maps on other grids, and
        label maps with unknown values.

    Raises:
        DataError: see :meth:`misfm.data.dataset.Dataset.cases`.
    """
    found = doubts(dataset)
    try:
        dataset.splits()
    except DataError as error:
        found.append(str(error))
    cases = [*dataset.cases("Tr"), *dataset.cases("Ts")]
    for done, case in enumerate(cases, start=1):
        found += case_faults(dataset, case, voxels=voxels)
        if progress:
            progress(done, len(cases))
    if voxels:
        try:
            dataset.check_values(())
        except DataError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def case_faults(dataset: Dataset, case: Case, *, voxels: bool) -> list[str]:
    """Say what is wrong with the files of a case; see :func:`faults`."""
    found: list[str] = []
    volumes: dict[Path, Volume] = {}
    files = [*case.image_paths, *([] if case.label_path is None else [case.label_path])]
    for number, file in enumerate(files):
        try:
            if not file.exists():
                what = (
                    f"channel {number} ({dataset.channel_names[number]})"
                    if number < len(case.image_paths)
                    else "the label map"
                )
                raise DataError(f"{file} is missing: {what} of case {case.name}; add the file.")
            volumes[file] = read_volume(file) if voxels else read_grid(file)
        except DataError as error:
            found.append(str(error))
    first = next((file for file in case.image_paths if file in volumes), None)
    for file, volume in volumes.items():
        if first is not None and file != first:
            found += _difference(file, volume, first, volumes[first])
    if voxels and not found:
        try:
            dataset.read_case(case, volumes.__getitem__)
        except DataError as error:
            found.append(str(error))
    return found


def _difference(file: Path, volume: Volume, reference_path: Path, reference: Volume) -> list[str]:
    try:
        check_grid(file, volume, reference_path, reference)
    except DataError as error:
        return [str(error)]
    return []


def _unlabelled(dataset: Dataset, cases: Sequence[Case]) -> list[str]:
    names = [case.name for case in cases if case.label_path is None]
    if not names:
        return []
    return [
        f"{dataset.path}: {_count(names, 'case')} of {len(cases)} without a label map in labelsTr, not "
        f"trained on: {_named(names)}; add CASE{dataset.file_ending} there, or take the images away."
    ]


def _left_over(dataset: Dataset, part: Part, cases: Sequence[Case]) -> list[str]:
    if part == "Tr" and dataset.listed is not None:
        return []
    images, labels = passed_over(dataset.path, part, dataset.file_ending, cases)
    found = []
    if images:
        named = _named([file.name for file in images])
        shape = f"CASE_0000{dataset.file_ending}"
        found.append(
            f"{dataset.path / f'images{part}'}: {_count(images, 'file')} passed over, whose names are not of "
            f"the form {shape}: {named}; rename or remove them."
        )
    if labels:
        named = _named([file.name for file in labels])
        found.append(
            f"{dataset.path / f'labels{part}'}: {_count(labels, 'label map')} without an image of that name: "
            f"{named}; name label maps as their images, without the channel's number."
        )
    return found


def _announced(dataset: Dataset, cases: Sequence[Case]) -> list[str]:
    file = dataset.path / "dataset.json"
    announced = read_dataset_json(file).get(NUM_TRAINING_KEY)
    labelled = sum(case.label_path is not None for case in cases)
    if announced is None or announced in (len(cases), labelled):
        return []
    return [
        f"{file} announces {one_line(str(announced))[:20]} training cases ({NUM_TRAINING_KEY}) and there are "
        f"{len(cases)}; add those that are missing, or correct the number."
    ]


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''}"


def _named(names: Sequence[str]) -> str:
    return ", ".join([*map(one_line, names[:_NAMED]), *(["..."] if len(names) > _NAMED else [])])
