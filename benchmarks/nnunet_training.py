"""nnU-Net's own pipeline under a time budget: plan, preprocess, train, predict.

Fingerprint, plan, preprocessing, network, loss, augmentation, SGD and export are nnU-Net's, untouched. Only
the loop around its training step is ours: the learning rate decays over exactly the steps that are taken, and
no time goes to validation, plots or a best checkpoint (nnU-Net predicts with the final one anyway).
Import this only when nnU-Net's environment variables are set.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_runs import channels
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    preprocess_dataset,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from misfm.files import write_json

NUMBER = 801
NAME = f"Dataset{NUMBER}_Peer"
PLANS = "peerPlans"
CONFIGURATION = "3d_fullres"
ALL_CASES = "all"
"""The fold that trains on every case nnU-Net was given."""
WARM_UP, MEASURED, LEAST_MEASURED = 1, 20, 3
"""Steps whose time is ignored, and is measured, before the training; fewer where steps are long."""
SAVES = 20
"""Checkpoints over a training, to go on from after a kill."""


@dataclass(frozen=True)
class Trained:
    """A finished training: the trainer, its steps, and the seconds they took."""

    trainer: nnUNetTrainer
    steps: int
    seconds: float


class MatchedPlanner(ExperimentPlanner):  # type: ignore[misc]
    """nnU-Net's planner with spacing, patch and batch size given; topology and features follow by its rules.

    Args:
        spacing: mm along nnU-Net's axes, slowest first.
        patch_size: voxels along the same.
        batch_size: patches in a batch.
    """

    def __init__(self, spacing: Sequence[float], patch_size: Sequence[int], batch_size: int) -> None:
        super().__init__(NUMBER, plans_name=PLANS, overwrite_target_spacing=list(spacing))
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.lowres_creation_threshold = 0.0  # a small patch is wanted, so no second, coarser configuration

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels: float, cache: Any
    ) -> dict[str, Any]:
        """Plan as nnU-Net does for scans that are as large as the patch, then restore what that changed."""
        shape = median_shape
        if len(spacing) == 3:
            shape = np.array(self.patch_size)[self.determine_transpose()[0]]
        plan = super().get_plans_for_configuration(
            spacing, shape, data_identifier, approximate_n_voxels, cache
        )
        if len(spacing) == 3:
            plan |= {"batch_size": self.batch_size, "median_image_size_in_voxels": median_shape}
            if tuple(plan["patch_size"]) != tuple(shape):
                raise SystemExit(f"nnU-Net's network for this patch needs {plan['patch_size']}: give that.")
        return dict(plan)


def prepare(planner: tuple[Sequence[float], Sequence[int], int] | None) -> None:
    """Take the fingerprint, plan and preprocess; for spacing, patch and batch size, or as nnU-Net likes."""
    extract_fingerprint_dataset(NUMBER, num_processes=1, verbose=False, show_progress_bar=False)
    chosen = ExperimentPlanner(NUMBER, plans_name=PLANS) if planner is None else MatchedPlanner(*planner)
    chosen.plan_experiment()
    preprocess_dataset(NUMBER, PLANS, (CONFIGURATION,), (1,), show_progress_bar=False)


def build(*, mirroring: bool, steps: int, seed: int) -> nnUNetTrainer:
    """Return a trainer, ready to take its first step, whose schedule ends after ``steps``."""
    seed_all(seed)
    folder = Path(nnUNet_preprocessed) / NAME
    plans = {**json.loads((folder / f"{PLANS}.json").read_text()), "continue_training": False}
    dataset = json.loads((folder / "dataset.json").read_text())
    kind = nnUNetTrainer if mirroring else nnUNetTrainerNoMirroring
    trainer = kind(plans, CONFIGURATION, ALL_CASES, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.lr_scheduler = PolyLRScheduler(trainer.optimizer, trainer.initial_lr, steps)
    trainer.on_train_start()
    trainer.network.train()
    return trainer


def seed_all(seed: int) -> None:
    """Seed all that nnU-Net draws from when it prepares batches in this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def take_step(trainer: nnUNetTrainer, step: int) -> float:
    """Take a step, from reading patches to the update; return its seconds."""
    began = time.perf_counter()
    trainer.lr_scheduler.step(step)
    trainer.train_step(next(trainer.dataloader_train))
    return time.perf_counter() - began


def seconds_per_step(*, mirroring: bool, at_most: float) -> float:
    """Measure on a trainer of its own, which is thrown away; takes some ``at_most`` seconds."""
    trainer = build(mirroring=mirroring, steps=WARM_UP + MEASURED, seed=0)
    for step in range(WARM_UP):
        take_step(trainer, step)
    measured: list[float] = []
    while len(measured) < MEASURED and (len(measured) < LEAST_MEASURED or sum(measured) < at_most):
        measured.append(take_step(trainer, WARM_UP + len(measured)))
    return sum(measured) / len(measured)


def train(*, mirroring: bool, steps: int, seed: int) -> Trained:
    """Train for ``steps``, from the last checkpoint where a killed training left one."""
    trainer = build(mirroring=mirroring, steps=steps, seed=seed)
    folder = Path(trainer.output_folder)
    final, latest, clock = (
        folder / "checkpoint_final.pth",
        folder / "checkpoint_latest.pth",
        folder / "clock.json",
    )
    done, seconds = 0, 0.0
    start = final if final.exists() else latest
    if start.exists():
        trainer.load_checkpoint(str(start))
        done, seconds = trainer.current_epoch, json.loads(clock.read_text())["seconds"]
        seed_all(seed + done)  # other patches than the first ones again
    for step in range(done, steps):
        seconds += take_step(trainer, step)
        if (step + 1) % max(1, steps // SAVES) == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps}, {seconds:.0f} s", flush=True)
            write_json(clock, {"seconds": seconds})
            save(trainer, step, final if step + 1 == steps else latest)
    trainer.disable_checkpointing = True  # the end is saved already
    trainer.on_train_end()
    return Trained(trainer, steps, seconds)


def save(trainer: nnUNetTrainer, step: int, path: Path) -> None:
    """Write a checkpoint atomically; what nnU-Net calls an epoch is a step here."""
    trainer.current_epoch = step
    temporary = path.with_suffix(".tmp")
    trainer.save_checkpoint(str(temporary))
    os.replace(temporary, path)


def predict(
    trainer: nnUNetTrainer, images: Path, names: Sequence[str], out: Path, *, mirrored: bool, overlap: float
) -> None:
    """Predict cases that are not there yet by nnU-Net's sliding window, and write them on their own grids."""
    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=mirrored, device=trainer.device, allow_tqdm=False
    )
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    ending = trainer.dataset_json["file_ending"]
    partial = out / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=1):
        if not (out / f"{name}{ending}").exists():
            files = [str(path) for path in channels(images, name, ending)]
            predictor.predict_from_files_sequential([files], [str(partial / name)])
            os.replace(partial / f"{name}{ending}", out / f"{name}{ending}")
            print(f"predicted {number}/{len(names)}", flush=True)
