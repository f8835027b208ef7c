"""Self-supervised pretraining: store -> patches -> pretext task -> network -> weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from misfm import world
from misfm.batches import with_images_on
from misfm.commands.probe import plan_probe
from misfm.commands.start import inherited_licence, open_weights, scans_seen, start_from, tell_transfer
from misfm.config import PretrainSettings
from misfm.data.generated import (
    check_beside,
    generate_beside,
    is_generated,
    num_volumes,
    open_store,
    parts_of,
)
from misfm.data.intensity_text import rules_for
from misfm.data.label_maps import of_people, read_table
from misfm.data.patches import JoinedPatches, MixedPatches, UnlabelledPatches, padding_notice
from misfm.data.record import Record
from misfm.data.records import Records, fingerprint_of
from misfm.data.sampling import choice_of
from misfm.data.splits import Split
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.files import write_checked_json
from misfm.models import Backbone, SegmentationModel, create
from misfm.planning.fill_defaults import fill_network
from misfm.planning.room import check_room
from misfm.planning.volumes import VOLUMES, ids_of, kept_split, open_scans, scans_of, split_records
from misfm.pretext.base import PretextTask
from misfm.seeding import Draws, derive_seed
from misfm.terminal import logger
from misfm.training.checkpoint import load_checkpoint
from misfm.training.devices import Devices, check_shares, lead
from misfm.training.exclusive import in_run
from misfm.training.loop import fit
from misfm.training.objectives import PretextObjective
from misfm.training.precision import judging
from misfm.training.run import RunFolder, steps_taken
from misfm.training.session import Validation
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, save
from misfm.weights.file import rules_to_keep
from misfm.weights.source import Opened

SCORES = (
    ("pretext_dice", "chance_dice"),
    ("matching_accuracy", "chance_accuracy"),
    ("nearest_base_accuracy", "chance_accuracy"),
    ("rotation_accuracy", "rotation_chance"),
)
"""Scores of pretext tasks, and what guessing reaches."""
LEARNT = 0.05
"""How far above chance a score is at the least where something was learnt."""


def pretrain(
    settings: PretrainSettings,
    out: Path,
    *,
    resume: bool = False,
    volumes: Split | None = None,
    devices: Devices | int | Literal["auto"] | None = None,
) -> dict[str, float]:
    """Pretrain a network on a store and write its weights into the run folder.

    Args:
        settings: everything about the run.
        out: the run folder.
        resume: go on with the run in ``out``, on the volumes it was started with.
        volumes: ids of those to use, where they were chosen before; by default they are chosen here.
        devices: how many to train on, see :func:`misfm.training.devices.lead`.

    Returns:
        The numbers of the last validation, such as ``pretext_dice``.

    Raises:
        DataError: no store, or too few volumes in it.
        Taken: another process works in the folder.
        ConfigError: the folder holds another run, or one started with volumes that the store has no more.
        Interrupted: stopped by the user; the state is saved.
    """

    def work() -> dict[str, float]:
        with in_run(RunFolder(out)):
            return pretrain_here(settings, out, resume=resume, volumes=volumes)

    return lead(devices, work)


def pretrain_here(
    settings: PretrainSettings, out: Path, *, resume: bool, volumes: Split | None
) -> dict[str, float]:
    """Do what :func:`pretrain` does, in a folder that is ours."""
    task = settings.pretext.build()
    run = RunFolder(out)
    weights = open_weights(settings.weights)
    settings = with_network_of(weights, settings)
    run.check(settings, resume=resume)
    check_shares(settings.batch_size, "batch_size")
    scans = None if is_generated(settings.store) else open_scans(settings, out)
    check_fit(task, settings, scans)
    split = None if scans is None else kept_split(scans, settings, out, volumes)
    if task.draws_people:
        task = task.model_copy(update={"table": read_table(open_store(settings.store, out))})
    # Before anything is generated: what cannot be built or judged leaves nothing behind.
    model = task.build_model(fresh_backbone(settings, split[0][0].channels if split else 1))
    names = split[0][0].channel_names if split else ()
    transferred = (
        None if run.has_checkpoint else start_from(model, settings.weights, weights, "backbone", names)
    )
    probe = plan_probe(settings, run, {*scans_seen(weights), *(scans_of(split[0]) if split else ())})
    store = scans or open_store(settings.store, out)
    training, held_out = split or kept_split(store, settings, out, volumes)
    source = PatchSource(task, settings, store, generated_store(task, settings, store, out))
    objective = PretextObjective(task, settings.patch_size)
    batches = source.batches(training, settings.seed)
    source.tell_padding()
    info = weights_info(settings, store, training, model, weights)
    seed = derive_seed(settings.seed, "validation")
    pretext = PretextValidation(objective, source.batches(held_out, seed, held_out=True), settings)
    patience = settings.training.patience
    validation = Validation(
        pretext, "validation_loss", lower_is_better=True, patience=patience, held=(pretext,)
    )
    if probe is not None:
        validation = probe.around(validation, info)
    run.begin(settings, resume=resume)
    tell_transfer(out, transferred)
    write_checked_json(out / VOLUMES, ids_of(training, held_out))
    fit(model, objective, batches, settings.training, run, seed=settings.seed, validation=validation)
    run.check_present()
    info = take_best(model, run, info) if probe else info.model_copy(update={"steps": steps_taken(run)})
    save(run.weights, model, info)
    return last_numbers(run, settings.weights)


def last_numbers(run: RunFolder, weights: str | None) -> dict[str, float]:
    """Return the numbers of the last validation and probe; say so if they are no better than chance."""
    result = {
        name: value
        for row in run.read_metrics()
        for name, value in row.items()
        if name.startswith(("validation", "probe"))
    }
    if notice := chance_notice(result, weights):
        logger.warning("%s", notice)
    return result


def chance_notice(result: Mapping[str, float | None], weights: str | None) -> str | None:
    """Say in a sentence that a pretext was not learnt, and what to do; None where it was, or is not scored.

    Args:
        result: the numbers of the last validation.
        weights: what the pretraining started from.
    """
    for score, chance in SCORES:
        reached, guessed = result.get(f"validation_{score}"), result.get(f"validation_{chance}")
        if reached is None or guessed is None or reached > guessed + LEARNT:
            continue
        better = "" if weights else ", or start from weights that have learnt something (--weights builtin)"
        return (
            f"{score.replace('_', ' ')} is {reached:.2f}, no better than chance ({guessed:.2f}): these "
            f"weights have learnt little yet. Train for more --steps{better}."
        )
    return None


def check_fit(task: PretextTask, settings: PretrainSettings, scans: Store | None) -> None:
    """Check that a task can learn from what it is given; ``scans`` is None where all is generated.

    Raises:
        ConfigError: a task for generated anatomy and scans, scans or a number of volumes that it does not go
            with, or a batch too small to hold both.
    """
    if scans is None:
        if settings.more_stores:
            raise ConfigError("Generated volumes go with no other store: give one --store.")
        if settings.sampling is not None:
            raise ConfigError("sampling chooses among scans: leave it out where volumes are generated.")
        num_volumes(settings.store)
        phantoms, people = parts_of(settings.store)
        if people is not None and not task.draws_people:
            raise ConfigError(
                f"'{settings.pretext.name}' draws no images for label maps: give --recipe label-maps, or "
                "leave labels: out of --store."
            )
        if people and phantoms and settings.batch_size < 2:
            raise ConfigError(
                "Half of each batch is generated anatomy, half people: set batch_size to 2 or more."
            )
    elif task.mixes_generated:
        check_beside(scans)
    if task.needs_labels and not is_generated(settings.store):
        wanted = " or labels:DIR" if task.draws_people else ""
        raise ConfigError(f"'{settings.pretext.name}' learns from label maps: give --store phantom{wanted}.")
    if task.mixes_generated and settings.batch_size < 2:
        raise ConfigError(
            f"'{settings.pretext.name}' mixes scans with generated anatomy: set batch_size to 2 or more."
        )


def with_network_of(weights: Opened | None, settings: PretrainSettings) -> PretrainSettings:
    """Return settings with the network of the weights to start from, given options on top.

    A recipe's network of another name stays: the weights then do not fit, which their transfer says.
    """
    if weights is None or weights.info is None:
        return settings
    network = fill_network(settings.network, weights.info.network.model_dump())
    return settings.model_copy(update={"network": network})


def take_best(model: nn.Module, run: RunFolder, info: WeightsInfo) -> WeightsInfo:
    """Load what the probe judged best; returns the description of these weights."""
    shutil.rmtree(run.path / "probe" / "cases", ignore_errors=True)
    best = load_checkpoint(run.best)
    model.load_state_dict(best.model)
    return info.model_copy(update={"steps": best.step})


def generated_store(task: PretextTask, settings: PretrainSettings, store: Store, out: Path) -> Store | None:
    """Generate the volumes that a task mixes with scans, unless these are generated; None for other tasks.

    Raises:
        ConfigError: scans that they do not go with.
    """
    if not task.mixes_generated:
        return None
    return store if is_generated(settings.store) else generate_beside(store, settings.generated, out)


@dataclass(frozen=True)
class PatchSource:
    """Where raw batches come from.

    Attributes:
        task: says how many patches of which size it takes.
        settings: of the run.
        store: the scans.
        generated: volumes with label maps that make up half of each batch, or None.
    """

    task: PretextTask
    settings: PretrainSettings
    store: Store
    generated: Store | None

    def tell_padding(self) -> None:
        """Warn of scans that are smaller than what is read for a patch."""
        notice = padding_notice(self.store.records(), self.task.source_size(self.settings.patch_size))
        if notice is not None:
            logger.warning("%s", notice)

    def batches(
        self, records: Sequence[Record], seed: int, *, held_out: bool = False
    ) -> UnlabelledPatches | MixedPatches | JoinedPatches:
        """Return batches of these scans, and of generated volumes that are held out or not."""
        count = self.settings.batch_size
        are_people = of_people(records)
        if self.task.draws_people and 0 < are_people.sum() < len(records):
            # People are few: half of each batch all the same.
            rest, people = (Records.of(records).take(part) for part in (~are_people, are_people))
            return JoinedPatches(
                self.patches(self.store, rest, count - count // 2, seed, labelled=True),
                self.patches(self.store, people, count // 2, derive_seed(seed, "people"), labelled=True),
            )
        sampling = None if held_out else self.settings.sampling
        choose = choice_of(sampling, records, self.store.names)
        if self.generated is None:
            scans = self.patches(self.store, records, count, seed, labelled=self.task.needs_labels)
            return replace(scans, choose=choose)
        parts = split_records(self.generated.records(), self.settings)
        # From one store, both halves of a batch would be the same patches.
        other = derive_seed(seed, "generated") if self.generated is self.store else seed
        return MixedPatches(
            replace(self.patches(self.store, records, count - count // 2, seed), choose=choose),
            self.patches(self.generated, parts[held_out], count // 2, other, labelled=True),
        )

    def patches(
        self, store: Store, records: Sequence[Record], count: int, seed: int, *, labelled: bool = False
    ) -> UnlabelledPatches:
        """Return batches of ``count`` volumes."""
        size = self.task.source_size(self.settings.patch_size)
        margin = self.task.margin(self.settings.patch_size)
        return UnlabelledPatches(store, records, size, self.task.num_patches, count, seed, labelled, margin)


def fresh_backbone(settings: PretrainSettings, in_channels: int) -> Backbone:
    """Build the network without a head, its weights drawn by the seed.

    Raises:
        ConfigError: it cannot be built, or trained on this machine.
    """
    check_room(settings, settings.network, settings.patch_size, settings.batch_size, in_channels)
    torch.manual_seed(derive_seed(settings.seed, "initial weights"))
    return create(
        settings.network.name,
        in_channels=in_channels,
        num_classes=2,
        patch_size=settings.patch_size,
        **settings.network.options,
    ).backbone


def weights_info(
    settings: PretrainSettings,
    store: Store,
    training: Sequence[Record],
    model: nn.Module,
    weights: Opened | None,
) -> WeightsInfo:
    """Describe the pretrained weights: what they saw and how scans have to be prepared for them."""
    spacing, licence = store.settings.spacing, settings.licence
    looks, _ = Records.of(training).looks
    rules = {rules_for(store.settings.intensity, look.kinds) for look in looks}
    return WeightsInfo(
        network=NetworkInfo(
            name=settings.network.name, options=cast(Backbone, model.get_submodule("backbone")).options
        ),
        in_channels=training[0].channels,
        num_classes=model.num_classes if isinstance(model, SegmentationModel) else 1,
        patch_size=settings.patch_size,
        spacing=None if spacing == "native" else spacing,
        intensity=rules_to_keep(rules.pop() if len(rules) == 1 else ()),
        channel_names=training[0].channel_names,
        pretext=settings.pretext.name,
        recipe=settings.recipe,
        steps=settings.training.steps,
        data=DataInfo(
            count=len(training),
            fingerprint=fingerprint_of(training),
            scans=tuple(sorted({*scans_of(training), *scans_seen(weights)})),
        ),
        licence=inherited_licence(settings.weights, weights) if licence == "unknown" else licence,
    )


@dataclass(frozen=True)
class PretextValidation:
    """Loss and score on a fixed set of fused patches of held-out volumes."""

    objective: PretextObjective
    patches: UnlabelledPatches | MixedPatches | JoinedPatches
    settings: PretrainSettings

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return the means over the fixed batches."""
        count = self.settings.validation_batches
        rows = world.shared_out(partial(self.judge, model), range(count))
        totals: dict[str, float] = {}
        for name, value in (item for row in rows for item in row.items()):
            totals[name] = totals.get(name, 0.0) + value / count
        return totals

    def judge(self, model: nn.Module, index: int) -> Mapping[str, float]:
        """Return the numbers of one batch."""
        device = next(model.parameters()).device
        with judging(device):
            raw = self.patches[index]
            batch = self.objective.prepare(
                with_images_on(raw, device),
                Draws((self.patches.seed, "prepare", index)),
            )
            outputs = model(batch.inputs, *batch.context)
            loss = sum(float(term) for term in self.objective.loss(outputs, batch).values())
            scores = self.objective.score(outputs, batch).items()
        return {"validation_loss": loss, **{f"validation_{name}": value for name, value in scores}}
