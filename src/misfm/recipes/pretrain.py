"""Self-supervised pretraining: store -> patches -> pretext task -> network -> weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from misfm.config import PretrainSettings
from misfm.data.intensity import IntensityRule, parse_intensity
from misfm.data.patches import UnlabelledPatches, padding_notice
from misfm.data.record import Record, fingerprint_of, short_fingerprint
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.models import Backbone, SegmentationModel, create
from misfm.pretext.base import PretextTask
from misfm.recipes.phantoms import is_generated, open_store
from misfm.recipes.probe import probed
from misfm.seeding import derive_seed, generator_for
from misfm.training.checkpoint import load_checkpoint
from misfm.training.logging import logger
from misfm.training.loop import Validation, fit
from misfm.training.objectives import PretextObjective
from misfm.training.run import RunFolder
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, save


def pretrain(settings: PretrainSettings, out: Path, *, resume: bool = False) -> dict[str, float]:
    """Pretrain a network on a store and write its weights into the run folder.

    Args:
        settings: everything about the run.
        out: the run folder.
        resume: go on with the run in ``out``.

    Returns:
        The numbers of the last validation, such as ``pretext_dice``.

    Raises:
        DataError: no store, or too few volumes in it.
        ConfigError: the folder holds another run.
        Interrupted: stopped by the user; the state is saved.
    """
    task = settings.pretext.build()
    if task.needs_labels and not is_generated(settings.store):
        raise ConfigError(f"'{settings.pretext.name}' learns from generated anatomy: give --store phantom.")
    store = open_store(settings.store, out)
    training, held_out = split_records(store.records(), settings)
    model = task.build_model(fresh_backbone(settings, training[0].channels))
    objective = PretextObjective(task, settings.patch_size)
    run = RunFolder(out)
    notice = padding_notice(store.records(), task.source_size(settings.patch_size))
    if notice is not None:
        logger.warning("%s", notice)

    info = weights_info(settings, store, training, model)
    patches = partial(unlabelled_patches, task, settings, store)
    validation = Validation(
        PretextValidation(objective, patches(held_out, derive_seed(settings.seed, "validation")), settings),
        key="validation_loss",
        lower_is_better=True,
    )
    if settings.probe is not None:
        validation = probed(validation, settings.probe, settings, info, run)
    run.begin(settings.model_dump(mode="json"), resume=resume)
    fit(
        model,
        objective,
        patches(training, settings.seed),
        settings.training,
        run,
        seed=settings.seed,
        validation=validation,
    )
    if settings.probe is not None:
        model.load_state_dict(load_checkpoint(run.best).model)
    save(run.weights, model, info)
    return {
        name: value
        for row in run.read_metrics()
        for name, value in row.items()
        if name.startswith(("validation", "probe"))
    }


def unlabelled_patches(
    task: PretextTask, settings: PretrainSettings, store: Store, records: Sequence[Record], seed: int
) -> UnlabelledPatches:
    """Return the source of raw batches."""
    return UnlabelledPatches(
        store,
        records,
        task.source_size(settings.patch_size),
        task.num_patches,
        settings.batch_size,
        seed,
        labelled=task.needs_labels,
    )


def fresh_backbone(settings: PretrainSettings, in_channels: int) -> Backbone:
    """Build the network without a head, its weights drawn by the seed."""
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    return create(
        settings.network.name,
        in_channels=in_channels,
        num_classes=2,
        patch_size=settings.patch_size,
        **settings.network.options,
    ).backbone


def weights_info(
    settings: PretrainSettings, store: Store, training: Sequence[Record], model: nn.Module
) -> WeightsInfo:
    """Describe the pretrained weights: what they saw and how scans have to be prepared for them."""
    spacing, rule = store.settings.spacing, parse_intensity(store.settings.intensity)
    kinds = {record.kind for record in training}
    if rule is None and len(kinds) == 1:
        rule = IntensityRule(kind=kinds.pop())
    return WeightsInfo(
        network=NetworkInfo(
            name=settings.network.name, options=cast(Backbone, model.get_submodule("backbone")).options
        ),
        in_channels=training[0].channels,
        num_classes=model.num_classes if isinstance(model, SegmentationModel) else 1,
        patch_size=settings.patch_size,
        spacing=None if spacing == "native" else spacing,
        intensity={} if rule is None else rule.model_dump(mode="json"),
        pretext=settings.pretext.name,
        recipe=settings.recipe,
        steps=settings.training.steps,
        data=DataInfo(
            count=len(training),
            fingerprint=fingerprint_of(training),
            scans=tuple(sorted({short_fingerprint(record.fingerprint) for record in training})),
        ),
        licence=settings.licence,
    )


def scans_of(settings: PretrainSettings) -> set[str]:
    """Short fingerprints of the scans that a pretraining learns from; none where they are generated.

    Raises:
        DataError: no store, or too few volumes in it.
    """
    if is_generated(settings.store):
        return set()
    training, _ = split_records(Store.open(settings.store).records(), settings)
    return {short_fingerprint(record.fingerprint) for record in training}


def split_records(records: Sequence[Record], settings: PretrainSettings) -> tuple[list[Record], list[Record]]:
    """Split the volumes of a store into training and held-out ones, the same way for the same seed."""
    if len(records) < 2:
        raise DataError(
            f"The store {settings.store} holds {len(records)} volume(s); pretraining needs at least two, one "
            "of them to measure progress on. Add scans with `misfm ingest`."
        )
    order = torch.randperm(len(records), generator=generator_for(settings.seed, "split")).tolist()
    count = min(max(1, round(settings.validation_share * len(records))), len(records) - 1)
    return [records[i] for i in order[count:]], [records[i] for i in order[:count]]


@dataclass(frozen=True)
class PretextValidation:
    """Loss and score on a fixed set of fused patches of held-out volumes."""

    objective: PretextObjective
    patches: UnlabelledPatches
    settings: PretrainSettings

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return the means over the fixed batches."""
        device = next(model.parameters()).device
        totals: dict[str, float] = {}
        count = self.settings.validation_batches
        for index in range(count):
            raw = self.patches[index]
            batch = self.objective.prepare(
                (raw[0].to(device), *raw[1:]), generator_for(self.patches.seed, "prepare", index)
            )
            outputs = model(batch.inputs, *batch.context)
            loss = sum(float(term) for term in self.objective.loss(outputs, batch).values())
            numbers = {"validation_loss": loss}
            for name, value in self.objective.score(outputs, batch).items():
                numbers[f"validation_{name}"] = value
            for name, value in numbers.items():
                totals[name] = totals.get(name, 0.0) + value / count
        return totals
