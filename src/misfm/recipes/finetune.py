"""Supervised training on a few labelled cases, from pretrained or random weights.

Split, spacing, intensity rule, network, order of patches and augmentation are settled before the weights are
looked at, so that a run from pretrained weights and its twin from scratch differ in nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misfm.config import FinetuneSettings, NetworkSettings, SettledSettings
from misfm.data.augment import safe_flip_axes
from misfm.data.dataset import Case, Dataset
from misfm.data.ingest import ingest_dataset
from misfm.data.intensity import IntensityRule, parse_intensity
from misfm.data.patches import LabelledPatches, padding_notice
from misfm.data.preprocess import canonical
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings, Record
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.files import write_json, write_text
from misfm.models import SegmentationModel, create
from misfm.recipes.validation import DiceValidation, score_cases
from misfm.registry import closest
from misfm.seeding import derive_seed, generator_for
from misfm.settings import Spacing
from misfm.training.logging import logger
from misfm.training.loop import Validation, fit
from misfm.training.objectives import SegmentationObjective
from misfm.training.run import RunFolder
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, describe, load, save

ROTATION_MARGIN = 0.1
"""Voxels read beyond each side of a patch over that side, for rotation to find voxels at the corners."""


def finetune(settings: FinetuneSettings, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train a segmentation network and write weights and validation scores into the run folder.

    Args:
        settings: everything about the run; what is null is settled here (see :func:`settle`).
        out: the run folder.
        resume: go on with the run in ``out``.

    Returns:
        What ``validation.json`` holds: scores of the validation cases on their own grids.

    Raises:
        ConfigError: unknown cases, a split or settings that do not fit.
        DataError: a dataset or case that cannot be used.
        WeightsError: weights that cannot be read or are of another network.
        Interrupted: stopped by the user; the state is saved.
    """
    dataset = Dataset.open(settings.dataset)
    training, held_out = choose_cases(dataset, settings)
    settled = settle(settings, dataset, training)
    run = RunFolder(out)
    # Before the run folder is made: what cannot be built or filled leaves nothing behind.
    model = build_model(settled, dataset)
    report = None
    if settled.weights is not None and not run.last.exists():
        report = load(model, settled.weights, transfer=settled.transfer)
    run.begin(settled.model_dump(mode="json"), resume=resume)
    if report is not None:
        write_text(out / "transfer.txt", f"{report}\n")
        logger.info("%s", report)
    names = {"train": [case.name for case in training], "val": [case.name for case in held_out]}
    write_json(out / "split.json", names)
    ingest_settings = IngestSettings(spacing=settled.spacing, intensity=settled.intensity)
    store = ingest_dataset(dataset, [*training, *held_out], out / "cases", ingest_settings)
    by_case = {record.case: record for record in store.records()}
    records = [by_case[name] for name in names["train"]]
    notice = padding_notice(records, settled.patch_size)
    if notice is not None:
        logger.warning("%s", notice)
    validation = DiceValidation(store, [by_case[name] for name in names["val"]], dataset, settled.patch_size)
    fit(
        model,
        SegmentationObjective(settled.augmentation, settled.patch_size, records[0].spacing),
        labelled_patches(settled, dataset, store, records),
        settled.training,
        run,
        seed=settled.seed,
        validation=Validation(validation, key="validation_dice") if held_out else None,
    )
    info = weights_info(settled, dataset, records, store)
    save(run.weights, model.keep_finest(), info)
    scores = score_cases(model, info, dataset, held_out)
    write_json(out / "validation.json", scores)
    return scores


def settle(settings: FinetuneSettings, dataset: Dataset, training: Sequence[Case]) -> SettledSettings:
    """Fill in network, spacing and intensity rule from the weights or the dataset, and the safe mirrors."""
    known: Mapping[str, Any] = {} if settings.weights is None else describe(settings.weights)
    network = settings.network
    if network is None:
        network = (
            NetworkSettings.model_validate(known["network"]) if "network" in known else NetworkSettings()
        )
    intensity = settings.intensity or rule_text(known.get("intensity") or {"kind": dataset.kinds[0]})
    if intensity == "auto":
        intensity = dataset.kinds[0]
    intensity_rule(intensity)  # refuse what is none before anything is written
    augmentation = settings.augmentation
    if "flip_axes" not in augmentation.model_fields_set:
        flips = safe_flip_axes(dataset.label_names.values())
        augmentation = augmentation.model_copy(update={"flip_axes": flips})
    return SettledSettings(
        **{
            **dict(settings),
            "network": network,
            "spacing": settings.spacing or known.get("spacing") or median_spacing(training),
            "intensity": intensity,
            "augmentation": augmentation,
        }
    )


def rule_text(rule: Mapping[str, Any]) -> str:
    """Write an intensity rule as the option that gives it: ``ct``, ``mr`` or ``ct:LOW,HIGH``."""
    window = rule.get("window")
    return f"{rule['kind']}:{window[0]:g},{window[1]:g}" if window else str(rule["kind"])


def intensity_rule(text: str) -> IntensityRule:
    """Return the rule of a settled ``intensity``, which is never ``auto``."""
    rule = parse_intensity(text)
    if rule is None:
        raise ConfigError("The intensity rule of a fine-tuning is 'ct', 'mr' or 'ct:LOW,HIGH'.")
    return rule


def median_spacing(cases: Sequence[Case]) -> Spacing:
    """Median spacing of the cases along (D, H, W) in canonical orientation, mm."""
    spacings = [canonical(read_volume(case.image_paths[0])).spacing for case in cases]
    d, h, w = (round(float(value), 4) for value in np.median(spacings, axis=0))
    return d, h, w


def choose_cases(dataset: Dataset, settings: FinetuneSettings) -> tuple[list[Case], list[Case]]:
    """Return the training and the validation cases.

    The split is that of ``settings.split``, else the dataset's own ``splits_final.json``, else 80/20 drawn by
    the seed 0, so that all runs on a dataset agree on it. A number of cases takes the first of one fixed
    shuffled order: fewer cases are always a subset of more.

    Raises:
        ConfigError: unknown case names, a fold that does not exist, or no case left to train on.
    """
    cases = {case.name: case for case in dataset.cases() if case.label_path is not None}
    splits = read_split(Path(settings.split)) if settings.split else dataset.splits()
    if splits:
        if settings.fold >= len(splits):
            raise ConfigError(f"There is no fold {settings.fold}: the split has {len(splits)}.")
        names, held_out = splits[settings.fold]["train"], splits[settings.fold]["val"]
    else:
        order = torch.randperm(len(cases), generator=generator_for(0, "split")).tolist()
        shuffled = [sorted(cases)[i] for i in order]
        count = max(1, len(cases) // 5) if len(cases) > 1 else 0
        names, held_out = sorted(shuffled[count:]), sorted(shuffled[:count])
    if isinstance(settings.cases, tuple):
        held_out = [name for name in held_out if name not in settings.cases]
        names = list(settings.cases)
    elif settings.cases is not None:
        if not 1 <= settings.cases <= len(names):
            raise ConfigError(f"--cases {settings.cases}: the split has {len(names)} training cases.")
        order = torch.randperm(len(names), generator=generator_for(0, "cases")).tolist()
        names = sorted(names[i] for i in order[: settings.cases])
    for name in (*names, *held_out):
        if name not in cases:
            raise ConfigError(f"{dataset.path} has no labelled case '{name}'; {closest(name, sorted(cases))}")
    if not names:
        raise DataError(f"{dataset.path} has no labelled case to train on.")
    return [cases[name] for name in names], [cases[name] for name in held_out]


def read_split(path: Path) -> list[dict[str, list[str]]]:
    """Read a file in the form of nnU-Net's ``splits_final.json``: [{"train": names, "val": names}, …]."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        splits = [splits] if isinstance(splits, dict) else splits
        return [{part: [str(name) for name in fold[part]] for part in ("train", "val")} for fold in splits]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f'{path} is not a split; expected [{{"train": [names], "val": [names]}}, …] in JSON.'
        ) from error


def build_model(settings: SettledSettings, dataset: Dataset) -> SegmentationModel:
    """Build the network with weights drawn by the seed."""
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
    settings: SettledSettings, dataset: Dataset, store: Store, records: Sequence[Record]
) -> LabelledPatches:
    """Return the source of training batches."""
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
    )


def weights_info(
    settings: SettledSettings, dataset: Dataset, records: Sequence[Record], store: Store
) -> WeightsInfo:
    """Describe the trained weights so that they suffice to predict with."""
    names = dataset.label_names
    return WeightsInfo(
        network=NetworkInfo(**settings.network.model_dump()),
        in_channels=len(dataset.channel_names),
        num_classes=max(names) + 1,
        label_names=tuple(names.get(value, f"class {value}") for value in range(max(names) + 1)),
        patch_size=settings.patch_size,
        spacing=None if settings.spacing == "native" else settings.spacing,
        intensity=intensity_rule(settings.intensity).model_dump(mode="json"),
        recipe=settings.recipe,
        steps=settings.training.steps,
        data=DataInfo(count=len(records), fingerprint=store.fingerprint()),
    )
