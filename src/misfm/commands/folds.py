"""Cross-validation: folds train in folders of their own, and each case is judged by one that has not seen it.

The folder as a whole is what ``misfm predict --run`` takes for an ensemble of the folds.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misfm.commands.finetune import Shared, build_model, finetune, stored_cases, tell_doubts
from misfm.commands.start import choose_start, start_from
from misfm.commands.unlabelled import unlabelled_patches
from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.dataset import Case, Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.splits import Split, read_split
from misfm.errors import ConfigError
from misfm.evaluation.arms import ALL, read_scores
from misfm.evaluation.case import LabelScores
from misfm.evaluation.summary import as_result
from misfm.files import write_checked_json
from misfm.inference.members import FOLDS
from misfm.planning.fill_defaults import fill_defaults, recall
from misfm.planning.leakage import check_leaks
from misfm.planning.splits import choose_cases, find_cases, folds_of, split_of
from misfm.terminal import logger
from misfm.training.exclusive import as_begun, exclusive
from misfm.training.run import RunFolder
from misfm.weights import Opened

SCORES = "validation.json"
"""In the folder of a fold: its scores, once it is finished."""


def cross_validate(settings: FinetuneSettings, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune on every fold into ``out/fold_0``, ``out/fold_1``, …, and pool their validation scores.

    All folds have the same settings, spacing and intensity rule, planned for the first of them; a number of
    ``cases`` is that of each fold.
    Writes ``out/folds.json``, what each fold trains and validates on, before the first of them is trained,
    and ``out/cross_validation.json`` at the end.

    Args:
        settings: of the fine-tunings; ``fold`` plays no part.
        out: the folder of all folds.
        resume: go on with the folds in ``out``, with their cases; those that are finished stay.

    Returns:
        What ``cross_validation.json`` holds: scores of all validated cases in the form of ``misfm evaluate``,
        and under ``folds`` the mean Dice and the cases of each.

    Raises:
        ConfigError: cases given by name, a case that several folds validate, no case that any does, or a
            fold that leaks (:mod:`.leakage`).
        MisfmError: as :func:`misfm.commands.finetune.finetune`.
    """
    with exclusive(out), as_begun(RunFolder(out / "fold_0")):
        return cross_validate_here(settings, out, resume=resume)


def cross_validate_here(settings: FinetuneSettings, out: Path, *, resume: bool) -> dict[str, Any]:
    """Do what :func:`cross_validate` does, in a folder that is ours."""
    if isinstance(settings.cases, tuple):
        raise ConfigError("--fold all draws the cases of each fold: give --cases a number, not names.")
    if RunFolder(out).config.exists():
        raise ConfigError(f"{out} holds a single run: choose another --out for the folds.")
    dataset = Dataset.open(settings.dataset)
    tell_doubts(dataset)
    begun = RunFolder(out / "fold_0").config.exists()
    RunFolder(out / "fold_0").refuse_taken(resume=resume)
    folds = read_split(out / FOLDS) if begun and (out / FOLDS).exists() else divide(dataset, settings)
    if resume:
        settings = recall(settings, RunFolder(out / "fold_0"))
    start, images = choose_start(settings, dataset), DatasetFingerprint.open(dataset, out)
    settings, weights = start.settings, start.weights
    ahead = [split for number, split in enumerate(folds) if not (out / f"fold_{number}" / SCORES).exists()]
    parts = [find_cases(dataset, split) for split in ahead]
    every_case = list({case.name: case for part in parts for cases in part for case in cases}.values())
    images.keep(every_case)
    complete, planned = fill_defaults(settings, images, len(folds[0]["train"]), weights)
    reasons = (*start.reasons, *planned)
    if not begun:
        check_parts(complete, images, parts, weights)
    for number in range(len(folds)):
        RunFolder(out / f"fold_{number}").check(complete.model_copy(update={"fold": number}), resume=True)
    write_checked_json(out / FOLDS, folds)
    if every_case:
        if not begun:  # what a killed start left may have been prepared otherwise
            shutil.rmtree(out / "cases", ignore_errors=True)
        images.save(out)
        stored_cases(complete, images, every_case, out / "cases")
    results = []
    for number, split in enumerate(folds):
        logger.info("fold %d of %d", number, len(folds))
        fold = complete.model_copy(update={"fold": number})
        shared = Shared(split, images, weights, out / "cases")
        results.append(train_fold(fold, out / f"fold_{number}", reasons, shared, resume=resume))
    pooled = pool(dataset, results)
    write_checked_json(out / "cross_validation.json", pooled)
    return pooled


def check_parts(
    settings: CompleteSettings,
    images: DatasetFingerprint,
    parts: Sequence[tuple[Sequence[Case], Sequence[Case]]],
    weights: Opened | None,
) -> None:
    """Find what is wrong with any fold before the first is trained, and leave nothing behind."""
    start_from(build_model(settings, images.dataset), settings.weights, weights, settings.transfer)
    unlabelled = unlabelled_patches(settings, images.dataset)
    for part in parts:
        check_leaks(settings, images, part, weights, unlabelled)


def divide(dataset: Dataset, settings: FinetuneSettings) -> list[Split]:
    """Return what each fold trains and validates on.

    Raises:
        ConfigError: a fold with too few cases, or folds that do not validate each case once.
    """
    drawn = folds_of(dataset, settings)
    refuse_repeats(drawn)
    numbered = (settings.model_copy(update={"fold": number}) for number in range(len(drawn)))
    return [split_of(*choose_cases(dataset, fold)) for fold in numbered]


def refuse_repeats(folds: Sequence[Split]) -> None:
    """Check that there is something to validate, and that no case would count twice."""
    validated = Counter(name for fold in folds for name in fold["val"])
    if not validated:
        raise ConfigError(
            "No fold validates a case: label cases of two subjects or more, or add some to 'val' in a split."
        )
    repeated = sorted(name for name, times in validated.items() if times > 1)
    if repeated:
        raise ConfigError(
            f"The split validates {repeated[0]} in several folds and it would count several times: give a "
            "split in which each case validates once."
        )


def train_fold(
    settings: CompleteSettings, out: Path, reasons: Sequence[str], shared: Shared, *, resume: bool
) -> dict[str, Any]:
    """Fine-tune on one fold, or return the scores of a fold that was finished with these settings."""
    scores = out / SCORES
    if not (resume and scores.exists()):
        return finetune(settings, out, resume=resume, reasons=reasons, shared=shared)
    RunFolder(out).begin(settings, resume=True)
    return read_scores(scores)


def pool(dataset: Dataset, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the cases of all folds together and average over them; ``folds`` tells of each fold."""
    names = {label: name for label, name in dataset.label_names.items() if label != 0}
    scores = {}
    for case, row in ((case, row) for result in results for case, row in result["cases"].items()):
        judged = [names[label] for label in names if label in dataset.annotated_labels(case)]
        scores[case] = {name: row[name] and LabelScores(**row[name]) for name in judged}
    pooled = as_result(dict(sorted(scores.items())), list(names.values()))
    pooled["folds"] = [
        {"fold": number, "dice": result["mean"][ALL]["dice"], "cases": sorted(result["cases"])}
        for number, result in enumerate(results)
    ]
    return pooled
