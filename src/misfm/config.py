"""A run is one YAML: what it may contain. How it is put together is in :mod:`misfm.resolve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from misfm.augment.labelled import AugmentSettings
from misfm.data.sampling import SamplingSettings
from misfm.models.limits import check_options
from misfm.pretext.base import PRETEXTS, PretextTask
from misfm.settings import NO_WEIGHTS, PositiveShape, Settings, Spacing, Tree, parse
from misfm.training.mean_teacher import UnlabelledSettings
from misfm.training.settings import OpenTrainingSettings, TrainingSettings

Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


class NetworkSettings(Settings):
    """Which network; the options are those of its builder in :mod:`misfm.models`."""

    name: str = "unet"
    """A registered network."""
    options: dict[str, Any] = Field(default={})
    """Options of its builder; what is left out keeps the builder's default."""

    @field_validator("options")
    @classmethod
    def _leaves_the_rest_to_the_run(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_options(options)
        return options


OLDER_WORDS = {
    f"{what}_probability": f"p_{what}" for what in ("flip", "inversion", "shuffle", "curve", "painting")
}
"""Options of pretext tasks as files of settings written before they were renamed have them."""


def is_own_task(name: object) -> bool:
    """Whether a pretext task is one of misfm's: those of others have words of their own."""
    return name in PRETEXTS.names() and PRETEXTS.get(str(name)).__module__.startswith("misfm.pretext.")


def renamed(options: Mapping[str, Any]) -> Tree:
    """Return options under the words of today, at every depth; of one source, where the older word wins."""
    current = {key: renamed(value) if isinstance(value, dict) else value for key, value in options.items()}
    older = {new: current.pop(old) for old, new in OLDER_WORDS.items() if old in current}
    return {**current, **older}


class PretextSettings(Settings):
    """Which pretext task; the options are the fields of its class in :mod:`misfm.pretext`."""

    name: str = "volume-fusion-v2"
    """A registered pretext task."""
    options: dict[str, Any] = Field(default={})
    """Fields of the task; what is left out keeps its default."""

    @field_validator("options")
    @classmethod
    def _understands_older_words(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return renamed(options) if is_own_task(info.data.get("name")) else options

    def build(self) -> PretextTask:
        """Return the task.

        Raises:
            ConfigError: unknown task, unknown option or a value out of range.
        """
        return parse(PRETEXTS.get(self.name), dict(self.options), f"pretext task '{self.name}'")


class RunSettings(Settings):
    """What pretraining and fine-tuning have in common."""

    recipe: str
    """Name and version of the recipe the settings started from."""
    seed: int = 0
    """The one seed all draws come from."""
    patch_size: PositiveShape | None = None
    """Voxels along (D, H, W) the network sees (MIS-FM: 64, 128, 128); null is planned, in fine-tuning."""
    batch_size: Count | None = None
    """Samples in a batch (MIS-FM: 4 in pretraining, 2 in fine-tuning); null is planned, in fine-tuning."""
    training: OpenTrainingSettings = OpenTrainingSettings()
    """Steps, optimiser, schedule."""
    weights: str | None = None
    """Where to start from: a file, run folder, published name or ``hf://``; null or none: random weights."""


class ProbeSettings(Settings):
    """Short fine-tunings during pretraining, at each of its validations."""

    dataset: str
    """Folder of an nnU-Net-format dataset."""
    cases: Count = 5
    """Labelled cases to fine-tune on."""
    steps: Count = 250
    """Fine-tuning steps; the other settings are those of the recipe's fine-tuning."""
    patience: Count | None = None
    """Probes without a better one after which pretraining ends; null takes all steps."""
    allow_overlap: bool = False
    """Probe also on scans that are pretrained on; see the setting of fine-tuning."""


class PretrainSettings(RunSettings):
    """Settings of ``misfm pretrain``."""

    patch_size: PositiveShape = (48, 48, 48)
    """Voxels along (D, H, W) the network sees (MIS-FM: 64, 128, 128)."""
    batch_size: Count = 2
    """Samples in a batch (MIS-FM: 4)."""
    training: TrainingSettings
    """Steps, optimiser, schedule."""
    store: str
    """Folder written by ``misfm ingest``, or its address, such as ``s3://bucket/store``; ``phantom`` or
    ``phantom:COUNT`` generates anatomy instead."""
    more_stores: tuple[str, ...] = ()
    """Further stores to learn from, made with the same spacing and intensity: --store, given again."""
    store_copies: str | None = None
    """Folder for copies of what is read of stores at addresses; null: beside the run, RUN-stores."""
    sampling: SamplingSettings | None = None
    """How often volumes of each group are drawn; null draws all volumes alike."""
    network: NetworkSettings = NetworkSettings()
    """The network to train."""
    pretext: PretextSettings = PretextSettings()
    """What is learnt."""
    licence: str = "unknown"
    """Licence of the weights, recorded in them; say where the scans came from and what that allows."""
    validation_share: Share = 0.05
    """Share of the volumes kept out of training to measure the pretext on (at least one)."""
    generated: Annotated[int, Field(ge=2, le=100_000)] = 200
    """Volumes generated for a task that mixes scans with generated anatomy."""
    validation_batches: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Batches of the fixed validation set."""
    probe: ProbeSettings | None = None
    """Few-label fine-tuning that judges the weights while they train; the best of them are kept."""

    @field_validator("weights")
    @classmethod
    def _none_is_a_word(cls, weights: str | None) -> str | None:
        return None if weights == NO_WEIGHTS else weights


class FinetuneSettings(RunSettings):
    """Settings of ``misfm finetune``."""

    weights: str | None = None
    """Where to start from: a file, run folder, published name or ``hf://``; none: random weights; null takes
    ``builtin`` where it fits."""
    dataset: str
    """Folder of an nnU-Net-format dataset."""
    network: NetworkSettings | None = None
    """The network to train; null takes that of the weights, or a lean U-Net as wide as the machine allows."""
    transfer: Literal["all", "encoder"] = "all"
    """all: encoder and decoder; encoder: encoder only."""
    intensity: str | None = None
    """auto, or ct, ct:LOW,HIGH (intensity window, HU), mr, pet, nonorm, rescale_to_0_1 or rgb_to_0_1; ct/pet
    gives each channel its own; null takes that of the weights, or auto: by the names of the channels."""
    spacing: Spacing | Literal["native"] | None = None
    """mm per voxel along (D, H, W) or "native"; null takes that of the weights, or the dataset's median."""
    cases: tuple[str, ...] | int | None = None
    """Names or number of the training cases to use; null uses all."""
    split: str | None = None
    """A file in the form of nnU-Net's splits_final.json; null takes the dataset's own, else draws folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which fold of the split."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds where they are drawn, by subject (nnU-Net: 5)."""
    allow_overlap: bool = False
    """Validate and test also on scans or subjects that are trained on, or that the weights have seen."""
    labelled_share: Share = 0.6
    """Share of patches centred on a labelled voxel."""
    deep_supervision: bool = True
    """Train on the outputs of all resolution levels of the decoder, the finest counting most."""
    class_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of the cross-entropy: 0 counts all voxels alike (nnU-Net), 1 all classes; 0.5 weights a voxel by one
    over the root of its class's share."""
    augmentation: AugmentSettings = AugmentSettings()
    """How patches are varied."""
    unlabelled: UnlabelledSettings | None = None
    """Scans without labels to learn from as well (mean teacher); null: labelled cases only."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of windows in the final validation, as a share of the patch."""
    select: bool = True
    """Choose on the validation cases whether the best weights are kept instead of the last, and of which
    labels only the largest connected part is; off, or without such cases: the last weights, as they are."""


class CompleteSettings(FinetuneSettings):
    """Fine-tuning settings in which nothing is left open."""

    weights: str
    """Where to start from: a file, run folder, published name or ``hf://``; none: random weights."""
    patch_size: PositiveShape
    """Voxels along (D, H, W) the network sees (MIS-FM: 64, 128, 128)."""
    batch_size: Count
    """Samples in a batch (MIS-FM: 2)."""
    training: TrainingSettings
    """Steps, optimiser, schedule."""
    network: NetworkSettings
    """The network to train."""
    spacing: Spacing | Literal["native"]
    """mm per voxel along (D, H, W) or "native"."""
    intensity: str
    """A rule for all channels, or one for each with / between them."""


class CompareSettings(Settings):
    """Settings of ``misfm compare``."""

    store: str
    """Folder written by ``misfm ingest``; what every arm is pretrained on."""
    dataset: str
    """Folder of an nnU-Net-format dataset; what every arm is fine-tuned and scored on."""
    recipes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Recipes, of which the pretext task is taken, or names of pretext tasks with their default options."""
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("unet",)
    """Registered networks."""
    cases: Annotated[tuple[Count, ...], Field(min_length=1)] = (5,)
    """Numbers of labelled training cases; fewer cases are always a subset of more."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Of the fine-tunings; each recipe is pretrained once, with the first of them."""
    base: str = "small"
    """Recipe of everything that all arms share: patches, steps, optimiser, schedule."""
    pretrain: tuple[str, ...] = ()
    """``key=value`` settings of every pretraining, or ``recipe:key=value`` for that of one recipe."""
    finetune: tuple[str, ...] = ()
    """``key=value`` settings of every fine-tuning."""
