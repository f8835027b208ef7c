"""Supervised training on a few labelled cases, from pretrained or random weights.

Split, spacing, intensity rule, network, order of patches and augmentation are fixed before the weights are
looked at, so that a run from pretrained weights and its twin from scratch differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from misfm.commands.keep import candidates, keep, reason_not_to_choose
from misfm.commands.start import Transferred, choose_start, inherited_licence, start_from, tell_transfer
from misfm.commands.unlabelled import unlabelled_patches, with_unlabelled
from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.dataset import Case, Dataset
from misfm.data.dataset_faults import doubts
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.ingest import ingest_dataset
from misfm.data.intensity_text import rules_for
from misfm.data.patches import LabelledPatches, UnlabelledPatches, padding_notice
from misfm.data.record import IngestSettings, Record
from misfm.data.records import fingerprint_of
from misfm.data.splits import Split
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.evaluation.arms import learning_curve
from misfm.evaluation.choice import choose, labels_in_one_piece
from misfm.evaluation.outlook import outlook
from misfm.evaluation.validation import SCORE, DiceValidation
from misfm.files import write_checked_json, write_text
from misfm.inference.predictor import MAX_CLASSES
from misfm.models import SegmentationModel, create
from misfm.planning.fill_defaults import fill_defaults, recall
from misfm.planning.leakage import check_leaks
from misfm.planning.room import check_room
from misfm.planning.splits import SPLIT, choose_cases, find_cases, split_of, split_of_run
from misfm.seeding import derive_seed
from misfm.terminal import logger
from misfm.training.devices import Devices, check_shares, lead
from misfm.training.exclusive import in_run
from misfm.training.loop import fit
from misfm.training.objectives import SegmentationObjective
from misfm.training.run import PLAN, RunFolder
from misfm.training.session import Validation
from misfm.weights import (
    DataInfo,
    NetworkInfo,
    Opened,
    WeightsInfo,
)
from misfm.weights.file import rules_to_keep

ROTATION_MARGIN = 0.1
"""Voxels read beyond each side of a patch over that side, for rotation to find voxels at the corners."""


@dataclass(frozen=True)
class Shared:
    """What several fine-tunings on a dataset share, for it to be read and chosen once.

    Attributes:
        split: cases to use; None chooses them.
        images: what is known of the dataset's images; None finds it out.
        weights: to start from, those of the settings; None opens them.
        store_dir: folder of the preprocessed cases; None keeps them in the run folder.
    """

    split: Split | None = None
    images: DatasetFingerprint | None = None
    weights: Opened | None = None
    store_dir: Path | None = None


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    resume: bool = False,
    reasons: Sequence[str] = (),
    shared: Shared | None = None,
    devices: Devices | int | Literal["auto"] | None = None,
) -> dict[str, Any]:
    """Train a segmentation network and write weights and validation scores into the run folder.

    Args:
        settings: everything about the run; what is null is filled in here (see :func:`fill_defaults`).
        out: the run folder.
        resume: go on with the run in ``out``, on the cases it was started with.
        reasons: for what was planned before, to be kept in the run folder with those of what is planned here.
        shared: what was read or chosen before, for several runs.
        devices: how many to train on, see :func:`misfm.training.devices.lead`.

    Returns:
        What ``validation.json`` holds: scores of the validation cases on their own grids, of the weights that
        were kept (:mod:`misfm.evaluation.choice`, ``chosen.json``).

    Raises:
        ConfigError: unknown cases, a split or settings that do not fit, or a leak (:mod:`.leakage`).
        Taken: another process works in the folder.
        DataError: a dataset or case that cannot be used.
        WeightsError: weights that cannot be read or are of another network.
        Interrupted: stopped by the user; the state is saved.
    """

    def work() -> dict[str, Any]:
        with in_run(RunFolder(out)):
            return finetune_here(settings, out, resume=resume, reasons=reasons, shared=shared or Shared())

    return lead(devices, work)


def finetune_here(
    settings: FinetuneSettings, out: Path, *, resume: bool, reasons: Sequence[str], shared: Shared
) -> dict[str, Any]:
    """Do what :func:`finetune` does, in a folder that is ours."""
    run, ready = RunFolder(out), prepare(settings, out, resume, shared)
    complete, images = ready.settings, ready.images
    run.check(complete, resume=resume)
    keep_reasons(out, [*reasons, *ready.reasons])  # first: once there are settings, nothing is planned again
    run.begin(complete, resume=resume)
    tell_transfer(out, ready.transferred)
    write_checked_json(out / SPLIT, split_of(ready.training, ready.held_out))
    images.save(out)
    store, records = stored_cases(
        complete, images, [*ready.training, *ready.held_out], shared.store_dir or out / "cases"
    )
    records, judged = records[: len(ready.training)], records[len(ready.training) :]
    trained = train(ready, run, store, records, judged)
    info, reason = weights_info(ready, records, judged), reason_not_to_choose(complete, judged)
    choice = choose(
        candidates(trained, ready.model, run, alone=bool(reason)),
        info,
        images.dataset,
        ready.held_out,
        eligible=() if reason else labels_in_one_piece(store, [*records, *judged], images.dataset),
        overlap=complete.overlap,
    )
    run.check_present()
    keep(choice, info, run, reason)
    tell_outlook(out)
    return choice.scores


def tell_outlook(out: Path) -> None:
    """Log what more steps would bring, if the validations of the run allow to say so."""
    said = outlook(learning_curve(out))
    if said is not None:
        logger.info("%s", said)


@dataclass(frozen=True)
class Ready:
    """A fine-tuning of which nothing can be refused any more, and nothing is written yet.

    Attributes:
        settings: in which nothing is open.
        reasons: for what was planned.
        images: what is known of the dataset's images.
        training, held_out: cases to train and to validate on.
        model: the network, with the weights to start from.
        transferred: what it took of them, and what to know of them; None from scratch, or when resumed.
        unlabelled: source of unlabelled batches, if any.
        scans_seen: short fingerprints of all scans that the weights will have learnt from.
        licence: of the weights to come.
    """

    settings: CompleteSettings
    reasons: Sequence[str]
    images: DatasetFingerprint
    training: Sequence[Case]
    held_out: Sequence[Case]
    model: SegmentationModel
    transferred: Transferred | None
    unlabelled: UnlabelledPatches | None
    scans_seen: tuple[str, ...]
    licence: str


def prepare(settings: FinetuneSettings, out: Path, resume: bool, shared: Shared) -> Ready:
    """Choose, open, plan, build and check; what is wrong is found here and leaves nothing behind."""
    dataset = Dataset.open(settings.dataset)
    split = (split_of_run(dataset, settings, out) if resume else None) or shared.split
    if shared.split is None:
        tell_doubts(dataset)
    training, held_out = find_cases(dataset, split) if split else choose_cases(dataset, settings)
    run = RunFolder(out)
    run.refuse_taken(resume=resume)
    start = choose_start(recall(settings, run) if resume else settings, dataset, shared.weights)
    weights = start.weights
    images = shared.images or DatasetFingerprint.open(dataset, out)
    images.keep([*training, *held_out])
    complete, reasons = fill_defaults(start.settings, images, len(training), weights)
    check_shares(complete.batch_size, "batch_size")
    if complete.unlabelled is not None:
        check_shares(complete.unlabelled.batch_size, "unlabelled.batch_size")
    model = build_model(complete, dataset)
    transferred = (
        None
        if run.has_checkpoint
        else start_from(model, complete.weights, weights, complete.transfer, dataset.channel_names)
    )
    unlabelled = unlabelled_patches(complete, dataset)
    return Ready(
        settings=complete,
        reasons=(*start.reasons, *reasons),
        images=images,
        training=training,
        held_out=held_out,
        model=model,
        transferred=transferred,
        unlabelled=unlabelled,
        scans_seen=check_leaks(complete, images, (training, held_out), weights, unlabelled),
        licence=inherited_licence(complete.weights, weights),
    )


def tell_doubts(dataset: Dataset) -> None:
    """Warn of images without label maps and whatever else of the dataset is passed over."""
    for doubt in doubts(dataset):
        logger.warning("%s", doubt)


def stored_cases(
    settings: CompleteSettings, images: DatasetFingerprint, cases: Sequence[Case], store_dir: Path
) -> tuple[Store, list[Record]]:
    """Preprocess cases into a store; returns it, and their records in the order of cases."""
    ingest_settings = IngestSettings(spacing=settings.spacing, intensity=settings.intensity)
    store = ingest_dataset(images.dataset, cases, store_dir, ingest_settings, images=images)
    images.forget()
    by_case = {record.case: record for record in store.records()}
    records = [by_case[case.name] for case in cases]
    images.dataset.check_values({value for record in records for value in record.labels or ()})
    return store, records


def train(
    ready: Ready, run: RunFolder, store: Store, records: Sequence[Record], judged: Sequence[Record]
) -> nn.Module:
    """Train the network on ``records``, validated on ``judged``; returns what was trained, which holds it."""
    settings, dataset = ready.settings, ready.images.dataset
    objective = SegmentationObjective(
        settings.augmentation,
        settings.patch_size,
        records[0].spacing,
        dataset.scheme,
        settings.class_balance,
    )
    labelled = labelled_patches(settings, dataset, store, records)
    validation = DiceValidation(store, judged, dataset, settings.patch_size)
    trained, goal, batches = with_unlabelled(ready.model, objective, labelled, settings, ready.unlabelled)
    judge = None
    if judged:
        patience = settings.training.patience
        judge = Validation(validation, SCORE, patience=patience, held=(validation,))
    fit(trained, goal, batches, settings.training, run, seed=settings.seed, validation=judge)
    return trained


def keep_reasons(out: Path, reasons: Sequence[str]) -> None:
    """Keep why what was planned is as it is in ``plan.txt``."""
    if reasons:
        write_text(out / PLAN, "\n".join([*reasons, ""]))


def build_model(settings: CompleteSettings, dataset: Dataset) -> SegmentationModel:
    """Build the network with weights drawn by the seed.

    Raises:
        DataError: more classes than label maps can hold.
    """
    if len(dataset.label_names) > MAX_CLASSES:  # the background of regions counts, too: a mask has it
        raise DataError(
            f"{dataset.path} names {len(dataset.label_names)} labels, and a network can tell {MAX_CLASSES} "
            "apart: join some."
        )
    sizes = settings.patch_size, settings.batch_size, len(dataset.channel_names)
    check_room(settings, settings.network, *sizes)
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    return create(
        settings.network.name,
        in_channels=len(dataset.channel_names),
        num_classes=dataset.scheme.num_outputs,
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
    outputs = [*dataset.scheme.codes.values()] if dataset.scheme.has_regions else [*dataset.label_names]
    return LabelledPatches(
        store=store,
        records=records,
        patch_size=settings.patch_size,
        margin=(d, h, w),
        batch_size=settings.batch_size,
        seed=settings.seed,
        labelled_share=settings.labelled_share,
        scheme=dataset.scheme,
        annotated={
            case: tuple(code in annotated for code in outputs)
            for case, annotated in dataset.annotated.items()
        },
    )


def weights_info(ready: Ready, records: Sequence[Record], judged: Sequence[Record]) -> WeightsInfo:
    """Describe weights trained on ``records`` for all steps so that they suffice to predict with."""
    settings, dataset = ready.settings, ready.images.dataset
    scheme, rules = dataset.scheme, rules_for(settings.intensity, dataset.kinds)
    return WeightsInfo(
        network=NetworkInfo(name=settings.network.name, options=ready.model.backbone.options),
        in_channels=len(dataset.channel_names),
        num_classes=scheme.num_outputs,
        label_names=scheme.output_names,
        label_values=() if scheme.is_numbered else scheme.output_values,
        regions_class_order=scheme.order,
        patch_size=settings.patch_size,
        spacing=None if settings.spacing == "native" else settings.spacing,
        whole_scans=any(record.labels_apart for record in (*records, *judged)),
        intensity=rules_to_keep(rules),
        channel_names=dataset.channel_names if len(rules) > 1 else (),
        mirror_axes=settings.augmentation.flip_axes,
        recipe=settings.recipe,
        steps=settings.training.steps,
        data=DataInfo(
            count=len(records),
            fingerprint=fingerprint_of(records),
            scans=ready.scans_seen,
        ),
        scan_ranges=ready.images.ranges(ready.training),
        licence=ready.licence,
    )
