"""What a fine-tuning leaves open, filled in from its weights, its dataset or the machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from misfm.augment.labelled import AugmentSettings
from misfm.augment.mirrors import safe_flip_axes
from misfm.config import CompleteSettings, FinetuneSettings, NetworkSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.intensity import IntensityRule, Kind
from misfm.data.intensity_text import AUTO, intensity_text, kinds_text, parse_intensity, rules_for
from misfm.data.record import IngestSettings
from misfm.models import NETWORKS
from misfm.planning.machine import present_machine
from misfm.planning.plan import Facts, Plan, plan
from misfm.settings import NO_WEIGHTS, Spacing
from misfm.terminal import logger
from misfm.training.run import PLANNED, RunFolder
from misfm.weights import Opened

COARSE = 2.0
"""Ratio of the weights' spacing to the dataset's that is worth a warning."""


class FilledDefaults(NamedTuple):
    """Settings in which nothing is open, and a sentence for each that was planned."""

    settings: CompleteSettings
    reasons: tuple[str, ...] = ()


def fill_defaults(
    settings: FinetuneSettings, images: DatasetFingerprint, num_cases: int, weights: Opened | None = None
) -> FilledDefaults:
    """Fill in network, spacing, intensity rule and mirrors, then plan patch, batch and steps.

    The network is that of the weights, with the given options on top. Spacing and intensity rule are theirs
    too, for channels of a kind that they were trained on: HU mean nothing in MR. Mirroring across the midline
    is on only where no label tells left from right. What is planned is logged with its reason (see
    :mod:`misfm.planning.plan`) and the reasons are returned, for there may be no run folder yet.

    Args:
        settings: in which what is null is open, but for the weights: these are chosen before.
        images: of the dataset; measured if anything is open that follows from their grids.
        num_cases: training cases.
        weights: to start from.

    Raises:
        ConfigError: an unknown network or intensity rule, or another number of rules than of channels.
        DataError: an image that cannot be read.
    """
    check_network(settings.network)
    dataset = images.dataset
    known: Mapping[str, Any] = (
        {} if weights is None or weights.info is None else weights.info.model_dump(mode="json")
    )
    theirs = () if weights is None or weights.info is None else weights.info.rules
    fits = not theirs or any(rule.kind in dataset.kinds for rule in theirs)
    augmentation = fill_flips(settings.augmentation, dataset)
    network = fill_network(settings.network, known.get("network"))
    settings = settings.model_copy(
        update={
            "weights": settings.weights or NO_WEIGHTS,
            "network": network,
            "intensity": fill_intensity(settings, dataset, theirs, fits=fits),
            "augmentation": augmentation,
        }
    )
    if nothing_is_open(settings):
        return FilledDefaults(CompleteSettings.model_validate(settings.model_dump()))
    spacing = settings.spacing or fill_spacing(known.get("spacing") if fits else None, images.spacing)
    facts = Facts(
        shape=images.shape(spacing),
        spacing=images.spacing if spacing == "native" else spacing,
        num_cases=num_cases,
        num_channels=len(dataset.channel_names),
        num_classes=dataset.scheme.num_outputs,
        machine=present_machine(),
        network=network,
        recompute=settings.training.recompute_activations,
        weights_patch=None if known.get("patch_size") is None else tuple(known["patch_size"]),
    )
    return fill(settings.model_copy(update={"spacing": spacing}), plan(settings, facts))


def fill_intensity(
    settings: FinetuneSettings, dataset: Dataset, theirs: Sequence[IntensityRule], *, fits: bool
) -> str:
    """Return the rule of all channels, or one for each; say so where the weights were of other kinds.

    Raises:
        ConfigError: no such rule, or another number of rules than of channels.
    """
    if not fits and (settings.intensity is None or settings.spacing is None):
        logger.warning(
            "%s was trained on %s and %s is %s: intensities and spacing are taken from the dataset.",
            *(settings.weights, kinds_text(rule.kind for rule in theirs)),
            *(dataset.path.name, kinds_text(dataset.kinds)),
        )
    intensity = settings.intensity or intensity_text(rules_of(dataset.kinds, theirs))
    if intensity == AUTO:
        intensity = intensity_text(rules_for(intensity, dataset.kinds))
    rules_for(intensity, dataset.kinds)
    return intensity


def rules_of(kinds: Sequence[Kind], theirs: Sequence[IntensityRule]) -> tuple[IntensityRule, ...]:
    """Return a rule for each channel: that of weights or a store for its kind, or that of the kind itself.

    Args:
        kinds: of the channels.
        theirs: what the weights or the store were made with; channel by channel where the kinds are the same.
    """
    if tuple(rule.kind for rule in theirs) == tuple(kinds):
        return tuple(theirs)
    known: dict[Kind, IntensityRule] = {}
    for rule in theirs:
        known.setdefault(rule.kind, rule)
    return tuple(known.get(kind, IntensityRule(kind=kind)) for kind in kinds)


def check_network(network: NetworkSettings | None) -> None:
    """Refuse an unknown network before an image is read.

    Raises:
        ConfigError: offers the nearest name.
    """
    if network is not None:
        NETWORKS.get(network.name)


def common_grid(
    settings: FinetuneSettings, held: IngestSettings, kinds: Collection[Kind], images: DatasetFingerprint
) -> tuple[Spacing | Literal["native"], str]:
    """Return the one spacing and intensity rule of fine-tunings that are compared.

    What ``settings`` leave open is that of the volumes pretrained on, where they have one and some are of the
    dataset's kind, and else that of the dataset; each arm would take that of its weights.

    Args:
        settings: of the fine-tunings.
        held: how the volumes pretrained on were prepared.
        kinds: of these.
        images: of the dataset to fine-tune on.

    Raises:
        DataError: an image that cannot be read.
    """
    dataset = images.dataset
    fits = any(kind in kinds for kind in dataset.kinds)
    if not fits:
        logger.warning(
            "%s is %s, which the pretraining never sees: spacing and intensities are the dataset's.",
            *(dataset.path.name, kinds_text(dataset.kinds)),
        )
    intensity = settings.intensity or intensity_text(
        rules_of(dataset.kinds, parse_intensity(held.intensity) if fits else ())
    )
    if settings.spacing is not None:
        return settings.spacing, intensity
    known = held.spacing if fits and held.spacing != "native" else None
    return fill_spacing(known, images.spacing), intensity


def fill(settings: FinetuneSettings, found: Plan) -> FilledDefaults:
    """Put what was planned into the settings, and log why."""
    for reason in found.reasons:
        logger.info("%s", reason)
    update = {name: getattr(found, name) for name in ("patch_size", "batch_size", "network")}
    training = {**dict(settings.training), "steps": found.steps}
    complete = CompleteSettings(**{**dict(settings), **update, "training": training})
    return FilledDefaults(complete, found.reasons)


def nothing_is_open(settings: FinetuneSettings) -> bool:
    """Whether all is chosen that follows from scans or machine otherwise."""
    chosen = (settings.network, settings.spacing, settings.patch_size, settings.batch_size)
    return None not in (*chosen, settings.training.steps)


def recall(settings: FinetuneSettings, run: RunFolder) -> FinetuneSettings:
    """Take over what the run that goes on has planned: with other memory free or with scans added to the
    dataset, the plan would be another."""
    if not run.config.exists():
        return settings
    saved = run.read_settings()
    names = [name for name in (*PLANNED, "weights") if name in type(settings).model_fields]
    names = [name for name in names if getattr(settings, name) is None]
    update = {name: saved.get(name) for name in names}
    before = saved.get("training", {})
    update_training = {"steps": settings.training.steps or before.get("steps")}
    if "patience" not in before:  # begun before there was any
        update_training["patience"] = None
    training = settings.training.model_copy(update=update_training)
    augmentation = settings.augmentation
    flips = saved.get("augmentation", {}).get("flip_axes")
    if "flip_axes" not in augmentation.model_fields_set and flips is not None:
        augmentation = augmentation.model_copy(update={"flip_axes": tuple(flips)})
    return FinetuneSettings.model_validate(
        {**dict(settings), **update, "training": training, "augmentation": augmentation}
    )


def fill_flips(augmentation: AugmentSettings, dataset: Dataset) -> AugmentSettings:
    """Mirror, unless axes are given, across the midline only where no label tells left from right."""
    if "flip_axes" in augmentation.model_fields_set:
        return augmentation
    return augmentation.model_copy(update={"flip_axes": safe_flip_axes(dataset.label_names.values())})


def fill_network(given: NetworkSettings | None, known: Mapping[str, Any] | None) -> NetworkSettings | None:
    """Return the network of the weights with the given options on top, or the given one if it is another."""
    if known is None:
        return given
    if given is None or given.name == known["name"]:
        options = {**known["options"], **(given.options if given else {})}
        return NetworkSettings(name=known["name"], options=options)
    return given


def fill_spacing(known: Spacing | None, measured: Spacing) -> Spacing:
    """Return the spacing of the weights, or the median of the dataset; say when they are far apart."""
    if known is None:
        return measured
    if any(theirs > COARSE * ours for theirs, ours in zip(known, measured, strict=True)):
        logger.warning(
            "The weights were trained at %s mm and the scans have %s mm: details will be lost; "
            "set spacing to keep them.",
            *(known, measured),
        )
    return known
