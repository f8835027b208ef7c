"""What misfm made, as cases to be looked at: a folder of predictions, and the validation cases of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from misfm.data.channels import read_together
from misfm.data.dataset import Dataset
from misfm.data.dicom.labels import read_labels
from misfm.data.dicom.series import DicomSeries
from misfm.data.readers import read_volume, stem
from misfm.data.scan import ScanSource
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.errors import DataError, MisfmError
from misfm.files import read_checked_json
from misfm.inference.load import load_predictor
from misfm.inference.predictions import read_cases
from misfm.training.run import RunFolder
from misfm.viewer.cases import Collection, Image, ViewedCase
from misfm.viewer.collect import References, as_values, of_dataset, read_scan, scans_of, stored
from misfm.volume import Volume
from misfm.weights import open_source

SPLIT, SCORES, CASES = "split.json", "validation.json", "cases"
"""In a run folder: which cases are which, their scores, and the store of what they were trained on."""


def predictions(path: Path, references: References) -> Collection:
    """The label maps in a folder that ``misfm predict`` wrote, over the scans they were made of.

    Raises:
        DataError: no such folder, it is damaged, or lists nothing.
    """
    listed = read_cases(path)
    if not listed:
        raise DataError(f"{path} lists no label map; run 'misfm predict' into it first.")
    return Collection(
        f"Predictions {path}", [_predicted(name, known, path, references) for name, known in listed.items()]
    )


def _predicted(name: str, known: Mapping[str, Any], folder: Path, references: References) -> ViewedCase:
    source, place, mask = (
        known.get("source", ""),
        str(known.get("path", "")),
        folder / Path(str(known["mask"])).name,
    )
    first = Path(source[0] if isinstance(source, list) and source else place)
    find = cache(lambda: scans_of(source, place, folder))

    def image() -> Image:
        found = find()
        if len(found) == 1:
            return read_scan(found[0])
        volume = read_together(found)
        kinds = [
            one.kinds(volume.with_data(data[None]))[0] for one, data in zip(found, volume.data, strict=True)
        ]
        return Image(volume, kinds, [one.case for one in found])

    reference = references.find(first, name, stem(mask), mask.name.partition(".")[0])
    drawn = None if reference is None else references.names(reference)
    labels = as_values(known["labels"]) if isinstance(known.get("labels"), dict) else None
    quality = known.get("quality")
    said = [f"{quality['says']}."] if isinstance(quality, dict) and quality.get("says") else []
    return ViewedCase(
        name,
        image,
        None if reference is None else partial(read_volume, reference),
        lambda _: read_mask(mask, find),
        labels=labels,
        ignore=None if drawn is None else drawn.ignore,
        notes=[*(str(one) for one in known.get("warnings") or ()), *said],
    )


def read_mask(mask: Path, scan: Callable[[], list[ScanSource]]) -> Volume:
    """Read a label map in any format that ``misfm predict`` writes; ``scan``: finds what it is of."""
    if not mask.exists():
        raise DataError(f"{mask} is not there any more; run the prediction again.")
    if not mask.name.endswith(".dcm"):
        return read_volume(mask)
    series = scan()[0].series
    if not isinstance(series, DicomSeries):
        raise DataError(f"{mask} refers to a DICOM series, and its scan is none.")
    return read_labels(mask, series)[0]


def run(path: Path) -> Collection:
    """The validation cases of a fine-tuning, each with the prediction that its weights make.

    Raises:
        DataError: a pretraining, which has none, or a damaged run.
    """
    settings = RunFolder(path).read_settings()
    if "dataset" not in settings:
        raise DataError(
            f"{path} is a pretraining and labels nothing; look at its scans with 'misfm view "
            f"{settings.get('store')}'."
        )
    cases, notes = _cases_of_run(path, Path(settings["dataset"]))
    return Collection(f"Run {path}", cases, notes)


def folds(path: Path) -> Collection:
    """The cases of a cross-validation, each with the prediction of the fold that has not trained on it.

    Raises:
        DataError: a damaged fold.
    """
    cases: list[ViewedCase] = []
    notes: list[str] = []
    for fold in sorted(path.glob("fold_*"), key=lambda one: (len(one.name), one.name)):
        found = run(fold)
        cases += found.cases
        notes += [f"{fold.name}: {note}" for note in found.notes]
    return Collection(f"Cross-validation {path}", cases, notes)


def _cases_of_run(path: Path, dataset_path: Path) -> tuple[list[ViewedCase], list[str]]:
    if not (path / SPLIT).exists():
        raise DataError(f"{path} has not chosen its cases yet; look again when its training has begun.")
    split = read_split(path / SPLIT)[0]
    notes = []
    names = split["val"]
    if not names:
        names = split["train"]
        notes.append("The run validates on nothing: these are the cases it was trained on.")
    scores, fault = _scores(path)
    notes += fault
    more: dict[str, Any] = {}
    if RunFolder(path).weights.exists():
        predictor = cache(partial(load_predictor, path))
        more = {"prediction": lambda image: predictor().predict(image().volume), "is_made": True}
    else:
        notes.append("The run is not finished: it has no weights to predict with yet.")
    try:
        opened = Dataset.open(dataset_path)
        by_name = {case.name: case for case in opened.cases("Tr")}
        found = {name: of_dataset(opened, by_name[name], **more) for name in names if name in by_name}
    except (MisfmError, OSError) as error:
        found, why = _from_store(path, more), str(error)
        if not found:
            raise DataError(f"The scans of {path} are gone: {why}") from error
        notes.append(f"Shown as they were trained on, cropped and resampled, for the dataset is gone: {why}")
    lost = [_lost(name, dataset_path) for name in names if name not in found]
    return [
        replace(case, scores=scores.get(case.name, {}))
        for case in [*(found[name] for name in names if name in found), *lost]
    ], notes


def _lost(name: str, dataset_path: Path) -> ViewedCase:
    def image() -> Image:
        raise DataError(f"{dataset_path} does not hold case {name} any more; put its files back.")

    return ViewedCase(name, image)


def _from_store(path: Path, more: Mapping[str, Any]) -> dict[str, ViewedCase]:
    """Cases as the run keeps them, or the cross-validation that it is a fold of."""
    place = next((one for one in (path / CASES, path.parent / CASES) if (one / "store.json").exists()), None)
    if place is None:
        return {}
    opened = Store.open(place)
    weights = RunFolder(path).weights
    info = open_source(path).info if weights.exists() else None
    labels = info.labels if info is not None else None
    return {
        record.case: ViewedCase(record.case, *stored(opened, record), labels=labels, **more)
        for record in opened.records()
    }


def _scores(path: Path) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Dice by case and label of a finished run, and a sentence where they cannot be read."""
    if not (path / SCORES).exists():
        return {}, []
    try:
        cases = read_checked_json(path / SCORES)["cases"]
        return {
            name: {label: one and float(one["dice"]) for label, one in row.items()}
            for name, row in cases.items()
        }, []
    except (MisfmError, KeyError, TypeError, ValueError, AttributeError) as error:
        return {}, [f"The scores of the run cannot be read: {error}"]
