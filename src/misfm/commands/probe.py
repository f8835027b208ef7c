"""A probe during pretraining: what the weights are worth so far, by a short fine-tuning on a few labels.

A pretext loss does not tell when to stop; this does. Every probe is the same fine-tuning (cases, order of
patches, steps) from the weights of the moment, so that probes differ in nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from misfm.commands.finetune import Shared, finetune
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.splits import Split
from misfm.evaluation.arms import ALL
from misfm.planning.leakage import check_pretraining
from misfm.planning.splits import SPLIT, choose_cases, shared_split, split_of
from misfm.resolve import recipe_names, resolve
from misfm.terminal import logger
from misfm.training.devices import check_shares
from misfm.training.run import RunFolder
from misfm.training.session import Validation
from misfm.weights import WeightsInfo, save

KEY = "probe_dice"
DEFAULT_RECIPE = "small"


@dataclass(frozen=True)
class Probe:
    """A short fine-tuning of the weights as they are.

    Attributes:
        settings: of the fine-tuning.
        folder: where the fine-tunings are; each leaves its settings, metrics and scores.
        images: what is known of the dataset's images.
        patience: probes without a better one after which pretraining ends; None takes all steps.
    """

    settings: FinetuneSettings
    folder: Path
    images: DatasetFingerprint
    patience: int | None

    def around(self, pretext: Validation, info: WeightsInfo) -> Validation:
        """Return a validation that measures the pretext as ever, then probes, and judges by the probe.

        Args:
            pretext: the validation of the pretext task.
            info: description of the weights.
        """

        def run(model: nn.Module, step: int) -> Mapping[str, float]:
            return {**pretext.run(model, step), KEY: self.dice(model, step, info)}

        # Without a cooldown, for the best weights are kept.
        return Validation(run, key=KEY, patience=self.patience, cooldown=0.0, held=pretext.held)

    def dice(self, model: nn.Module, step: int, info: WeightsInfo) -> float:
        """Return the mean Dice of the validation cases after fine-tuning; NaN where nothing was scored."""
        out = self.folder / f"step-{step}"
        weights = self.folder / "weights.safetensors"
        with torch.inference_mode(mode=False), quiet():
            save(weights, model, info.model_copy(update={"steps": step}))
            start = self.settings.model_copy(update={"weights": str(weights)})
            split = shared_split(self.folder / SPLIT, self.choose)
            shared = Shared(split, self.images, store_dir=self.folder / "cases")
            scores = finetune(start, out, resume=True, shared=shared)
            self.images.save(self.folder)
        for leftover in ("checkpoints", "tensorboard"):
            shutil.rmtree(out / leftover, ignore_errors=True)
        (out / "weights.safetensors").unlink(missing_ok=True)
        dice = scores["mean"].get(ALL, {}).get("dice")
        return float("nan") if dice is None else float(dice)

    def choose(self) -> Split:
        """Choose the cases of all probes."""
        return split_of(*choose_cases(self.images.dataset, self.settings))


def plan_probe(settings: PretrainSettings, run: RunFolder, scans: Iterable[str]) -> Probe | None:
    """Return the probe that the settings ask for, or None.

    Args:
        settings: of the pretraining.
        run: its folder.
        scans: short fingerprints of what it learns from.

    Raises:
        ConfigError: settings of the fine-tuning that do not fit, or a leak into its validation or test cases.
        DataError: a dataset or image that cannot be read.
    """
    probe = settings.probe
    if probe is None:
        return None
    recipe = settings.recipe if settings.recipe in recipe_names() else DEFAULT_RECIPE
    options = {
        "dataset": probe.dataset,
        "cases": probe.cases,
        "seed": settings.seed,
        "patch_size": settings.patch_size,
        "network": settings.network.model_dump(mode="json"),
        "transfer": settings.pretext.build().transfer,
        "training.steps": probe.steps,
        "training.validate_every": probe.steps,
        "allow_overlap": probe.allow_overlap,
        "select": False,  # it judges the weights, not what a choice makes of them
    }
    fine = resolve(FinetuneSettings, recipe=recipe, options=options)
    if fine.batch_size is None:  # planned for each probe anew, it might differ from one to the next
        fine = fine.model_copy(update={"batch_size": settings.batch_size})
    check_shares(fine.batch_size or settings.batch_size, "batch_size of the probe")
    folder = run.path / "probe"
    images = DatasetFingerprint.open(Dataset.open(fine.dataset), folder)
    check_pretraining(scans, fine, images)
    return Probe(fine, folder, images, probe.patience)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the lines of the inner training out of the log of the outer one; they go to its own log.txt."""
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
