"""Supervised training on a few labelled cases, from pretrained or random weights.

Split, spacing, intensity rule, network, order of patches and augmentation are settled before the weights are
looked at, so that a run from pretrained weights and its twin from scratch differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misfm.commands.unlabelled import unlabelled_patches, with_unlabelled
from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.dataset import Case, Dataset
from misfm.data.ingest import ingest_dataset
from misfm.data.patches import LabelledPatches, padding_notice
from misfm.data.record import IngestSettings, Record, fingerprint_of
from misfm.data.splits import Split
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.evaluation.validation import DiceValidation, score_cases
from misfm.files import write_json, write_text
from misfm.inference.predictor import MAX_CLASSES
from misfm.models import SegmentationModel, create
from misfm.planning import leakage
from misfm.planning.fill_defaults import fill_defaults, intensity_rule, recall
from misfm.planning.splits import SPLIT, begun_with, choose_cases, find_cases, split_of
from misfm.seeding import derive_seed
from misfm.terminal import logger
from misfm.training.loop import Validation, best_device, fit
from misfm.training.objectives import SegmentationObjective
from misfm.training.run import RunFolder
from misfm.weights import DataInfo, NetworkInfo, TransferReport, WeightsInfo, describe, load, save
from misfm.weights.published import notices

ROTATION_MARGIN = 0.1
"""Voxels read beyond each side of a patch over that side, for rotation to find voxels at the corners."""


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    resume: bool = False,
    reasons: Sequence[str] = (),
    split: Split | None = None,
) -> dict[str, Any]:
    """Train a segmentation network and write weights and validation scores into the run folder.

    Args:
        settings: everything about the run; what is null is settled here (see :func:`fill_defaults`).
        out: the run folder.
        resume: go on with the run in ``out``, on the cases it was begun with.
        reasons: for what was planned before, to be kept in the run folder with those of what is planned here.
        split: cases to use, where they were chosen before; by default they are chosen here.

    Returns:
        What ``validation.json`` holds: scores of the validation cases on their own grids.

    Raises:
        ConfigError: unknown cases, a split or settings that do not fit, or a leak (:mod:`.leakage`).
        DataError: a dataset or case that cannot be used.
        WeightsError: weights that cannot be read or are of another network.
        Interrupted: stopped by the user; the state is saved.
    """
    dataset = Dataset.open(settings.dataset)
    split = (begun_with(dataset, settings, out) if resume else None) or split
    training, held_out = find_cases(dataset, split) if split else choose_cases(dataset, settings)
    run = RunFolder(out)
    settled, planned = fill_defaults(recall(settings, run) if resume else settings, dataset, len(training))
    # Before the run folder is made: what cannot be built, filled or judged leaves nothing behind.
    model = build_model(settled, dataset)
    unlabelled = unlabelled_patches(settled, dataset)
    checked = leakage.check_leaks(settled, dataset, (training, held_out), out, unlabelled)
    transferred = None if run.last.exists() else start_from_weights(model, settled)
    run.begin(settled, resume=resume)
    keep_reasons(out, [*reasons, *planned])
    tell_transfer(out, transferred)
    write_json(out / SPLIT, split_of(training, held_out))
    write_json(out / leakage.FILE, checked.files)
    store, records = stored_cases(settled, dataset, [*training, *held_out], out)
    records, judged = records[: len(training)], records[len(training) :]
    validation = DiceValidation(store, judged, dataset, settled.patch_size)
    objective = SegmentationObjective(
        settled.augmentation, settled.patch_size, records[0].spacing, settled.class_balance
    )
    labelled = labelled_patches(settled, dataset, store, records)
    fit(
        *with_unlabelled(model, objective, labelled, settled, unlabelled),
        settled.training,
        run,
        seed=settled.seed,
        validation=Validation(validation, key="validation_dice") if held_out else None,
    )
    info = weights_info(settled, dataset, records, model, checked.scans)
    save(run.weights, model.keep_finest(), info)
    scores = score_cases(model.to(best_device()), info, dataset, held_out, overlap=settled.overlap)
    write_json(out / "validation.json", scores)
    return scores


def stored_cases(
    settings: CompleteSettings, dataset: Dataset, cases: Sequence[Case], out: Path
) -> tuple[Store, list[Record]]:
    """Preprocess cases into a store in the run folder; returns it, and the records in the order of cases."""
    ingest_settings = IngestSettings(spacing=settings.spacing, intensity=settings.intensity)
    store = ingest_dataset(dataset, cases, out / "cases", ingest_settings)
    by_case = {record.case: record for record in store.records()}
    return store, [by_case[case.name] for case in cases]


def keep_reasons(out: Path, reasons: Sequence[str]) -> None:
    """Keep why what was planned is as it is in ``plan.txt``; a run that goes on plans nothing again."""
    if reasons:
        write_text(out / "plan.txt", "\n".join([*reasons, ""]))


def start_from_weights(
    model: SegmentationModel, settings: CompleteSettings
) -> tuple[TransferReport, list[str]] | None:
    """Load the weights to start from, if any; returns what was transferred, and what to know of them."""
    if settings.weights is None:
        return None
    report = load(model, settings.weights, transfer=settings.transfer)
    return report, notices(settings.weights, describe(settings.weights))


def tell_transfer(out: Path, transferred: tuple[TransferReport, list[str]] | None) -> None:
    """Log what was transferred, and keep it in the run folder."""
    if transferred is not None:
        report, warnings = transferred
        write_text(out / "transfer.txt", "\n".join([str(report), *warnings, ""]))
        logger.info("%s", report)
        for warning in warnings:
            logger.warning("%s", warning)


def build_model(settings: CompleteSettings, dataset: Dataset) -> SegmentationModel:
    """Build the network with weights drawn by the seed.

    Raises:
        DataError: more classes than label maps can hold.
    """
    if len(dataset.label_names) > MAX_CLASSES:
        raise DataError(
            f"{dataset.path} names {len(dataset.label_names)} labels, and a network can tell {MAX_CLASSES} "
            "apart: join some."
        )
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    return create(
        settings.network.name,
        in_channels=len(dataset.channel_names),
        num_classes=max(dataset.label_names) + 1,
        patch_size=settings.patch_size,
        deep_supervision=settings.deep_supervision,
        **settings.network.options,
    )


def labelled_patches(
    settings: CompleteSettings, dataset: Dataset, store: Store, records: Sequence[Record]
) -> LabelledPatches:
    """Return the source of training batches; warn of volumes that are smaller than a patch."""
    notice = padding_notice(records, settings.patch_size)
    if notice is not None:
        logger.warning("%s", notice)
    d, h, w = (int(np.ceil(side * ROTATION_MARGIN)) for side in settings.patch_size)
    return LabelledPatches(
        store=store,
        records=records,
        patch_size=settings.patch_size,
        margin=(d, h, w),
        batch_size=settings.batch_size,
        seed=settings.seed,
        labelled_share=settings.labelled_share,
        ignore_label=dataset.ignore_label,
        annotated={
            name: tuple(label in values for label in range(max(dataset.label_names) + 1))
            for name, values in dataset.annotated.items()
        },
    )


def weights_info(
    settings: CompleteSettings,
    dataset: Dataset,
    records: Sequence[Record],
    model: SegmentationModel,
    scans: tuple[str, ...],
) -> WeightsInfo:
    """Describe the trained weights so that they suffice to predict with; ``scans`` is all they have seen."""
    names = dataset.label_names
    return WeightsInfo(
        network=NetworkInfo(name=settings.network.name, options=model.backbone.options),
        in_channels=len(dataset.channel_names),
        num_classes=max(names) + 1,
        label_names=tuple(names.get(value, f"class {value}") for value in range(max(names) + 1)),
        patch_size=settings.patch_size,
        spacing=None if settings.spacing == "native" else settings.spacing,
        intensity=intensity_rule(settings.intensity).model_dump(mode="json"),
        mirror_axes=settings.augmentation.flip_axes,
        recipe=settings.recipe,
        steps=settings.training.steps,
        data=DataInfo(count=len(records), fingerprint=fingerprint_of(records), scans=scans),
        licence=inherited_licence(settings.weights),
    )


def inherited_licence(weights: str | None) -> str:
    """What the licence of the weights at the start, if any, asks to be passed on."""
    return "unknown" if weights is None else f"starts from {weights}: {describe(weights)['licence']}"
