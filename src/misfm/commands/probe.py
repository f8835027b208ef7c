"""A probe during pretraining: what the weights are worth so far, by a short fine-tuning on a few labels.

A pretext loss does not tell when to stop; this does. Every probe is the same fine-tuning (cases, order of
patches, steps) from the weights of the moment, so that probes differ in nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from misfm.commands.finetune import finetune
from misfm.config import FinetuneSettings, PretrainSettings, ProbeSettings, recipe_names, resolve
from misfm.data.dataset import Dataset
from misfm.data.splits import Split
from misfm.evaluation.arms import ALL
from misfm.planning.leakage import check_pretraining
from misfm.planning.splits import SPLIT, choose_cases, shared_split, split_of
from misfm.terminal import logger
from misfm.training.loop import Validation
from misfm.training.run import RunFolder
from misfm.weights import WeightsInfo, save

KEY = "probe_dice"
DEFAULT_RECIPE = "small"


@dataclass(frozen=True)
class Probe:
    """Measures the pretext as ever, then fine-tunes and adds ``probe_dice``.

    Attributes:
        pretext: the validation of the pretext task.
        settings: of the fine-tuning.
        info: description of the weights.
        folder: where the fine-tunings are; each leaves its settings, metrics and scores.
    """

    pretext: Validation
    settings: FinetuneSettings
    info: WeightsInfo
    folder: Path

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return the numbers of the pretext and the mean Dice of the probe's validation cases."""
        numbers = dict(self.pretext.run(model, step))
        out = self.folder / f"step-{step}"
        weights = self.folder / "weights.safetensors"
        with torch.inference_mode(mode=False), quiet():
            save(weights, model, self.info.model_copy(update={"steps": step}))
            start = self.settings.model_copy(update={"weights": str(weights)})
            scores = finetune(start, out, resume=True, split=shared_split(self.folder / SPLIT, self.choose))
        for leftover in ("checkpoints", "cases", "tensorboard"):
            shutil.rmtree(out / leftover, ignore_errors=True)
        (out / "weights.safetensors").unlink(missing_ok=True)
        dice = scores["mean"].get(ALL, {}).get("dice")
        return {**numbers, KEY: float("nan") if dice is None else dice}

    def choose(self) -> Split:
        """Choose the cases of all probes."""
        return split_of(*choose_cases(Dataset.open(self.settings.dataset), self.settings))


def probed(
    pretext: Validation, probe: ProbeSettings, settings: PretrainSettings, info: WeightsInfo, run: RunFolder
) -> Validation:
    """Return a validation that also probes, and judges by the probe.

    Raises:
        ConfigError: settings of the fine-tuning that do not fit, or a leak into its validation or test cases.
    """
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
    }
    fine = resolve(FinetuneSettings, recipe=recipe, options=options)
    if fine.batch_size is None:  # planned for each probe anew, it might differ from one to the next
        fine = fine.model_copy(update={"batch_size": settings.batch_size})
    check_pretraining(info.data.scans if info.data else (), fine)
    return Validation(Probe(pretext, fine, info, run.path / "probe"), key=KEY, patience=probe.patience)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the lines of the inner training out of the log of the outer one; they go to its own log.txt."""
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
