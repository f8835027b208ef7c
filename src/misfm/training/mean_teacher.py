"""Unlabelled scans in fine-tuning: a mean teacher (Tarvainen & Valpola 2017, arXiv 1703.01780).

The teacher has the moving average of the student's weights. It sees a patch as it is, the student the same
patch with other intensities; their probabilities of each class or region should agree. No voxel is moved for
either, so there is no geometry to undo. For 3D segmentation see Yu et al. 2019 (UA-MT, arXiv 1907.07034).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from misfm import world
from misfm.augment.intensity import IntensitySettings, apply_intensities, sample_intensities
from misfm.batches import WHOLE, Batch, RawPatches, Share
from misfm.data.patches import LabelledBatch, LabelledPatches, UnlabelledPatches
from misfm.losses import masked_mean
from misfm.models.base import SegmentationModel
from misfm.models.heads import finest
from misfm.seeding import Draws
from misfm.settings import Settings
from misfm.training.ema import decay_at, move_average, weights_of
from misfm.training.objectives import SegmentationBatch, SegmentationObjective

Logits = Tensor | list[Tensor]
TwoViews = tuple[Logits, Tensor, int]
"""The student's logits of labelled and unlabelled patches, the teacher's of the latter, and steps taken."""


class UnlabelledSettings(Settings):
    """Which unlabelled scans a fine-tuning learns from, too, and how much."""

    store: str
    """Folder written by ``misfm ingest`` with the spacing and intensity of the fine-tuning."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Unlabelled patches beside those of a batch (UA-MT: 2 beside 2)."""
    weight: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the consistency beside the supervised loss, once it has risen (UA-MT 0.1)."""
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of the steps in which the weight rises, as exp(-5 (1 - t)^2)."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of the teacher that stays in a step (UA-MT 0.99); less in the first steps."""
    augmentation: IntensitySettings = IntensitySettings(
        p_noise=1.0, p_blur=0.2, p_brightness=0.5, p_contrast=0.5, p_gamma=0.5
    )
    """How the student's view of an unlabelled patch differs from the teacher's."""


class MeanTeacher(nn.Module):
    """A student that is trained and a teacher that follows it; for one patch alone, the student.

    Args:
        student: the network, with the weights that training starts from.
        decay: share of the teacher that stays in a step.
    """

    def __init__(self, student: SegmentationModel, decay: float) -> None:
        super().__init__()
        self.student = student
        self.teacher = deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Logits | TwoViews:
        """Logits of patches (B, C, D, H, W), and those the teacher has for ``seen`` (U, C, D, H, W)."""
        logits: Logits = self.student(x)
        if seen is None:
            return logits
        with torch.no_grad():
            return logits, finest(self.teacher(seen)), self.steps

    def follow(self) -> None:
        """Let the teacher take in the student after a step."""
        weights = weights_of(self.student)
        move_average(weights_of(self.teacher), weights, decay_at(self.steps, self.decay))
        self.steps += 1

    def get_extra_state(self) -> int:
        """Steps taken; part of the state of the module."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Restore the steps taken."""
        self.steps = state


@dataclass(frozen=True, kw_only=True)
class MeanTeacherBatch(Batch):
    """Labelled patches, then unlabelled ones as the student sees them; the context is what the teacher sees.

    Attributes:
        labelled: the labelled part alone.
        real: (U, D, H, W) bool, voxels of the unlabelled patches that are not padding.
    """

    labelled: SegmentationBatch
    real: Tensor


@dataclass(frozen=True)
class MeanTeacherObjective:
    """Segmentation of labelled patches, and agreement with a teacher on unlabelled ones.

    Attributes:
        supervised: what the labelled patches are trained for.
        settings: of the unlabelled part.
        steps: of the whole training.
    """

    supervised: SegmentationObjective
    settings: UnlabelledSettings
    steps: int

    def prepare(self, batch: tuple[LabelledBatch, RawPatches], draws: Draws) -> MeanTeacherBatch:
        """Prepare the labelled patches as without others, and a second view of the unlabelled ones."""
        labelled = self.supervised.prepare(batch[0], draws)
        seen, own = batch[1].patches[:, 0], draws.apart("unlabelled")
        first, varied = world.rank() * len(seen), []
        for row in range(len(seen)):
            plan = sample_intensities(1, self.settings.augmentation, own.of_sample(first + row))
            varied.append(apply_intensities(seen[row : row + 1], plan))
        return MeanTeacherBatch(
            inputs=torch.cat([labelled.inputs, *varied]),
            targets=labelled.targets,
            context=(seen,),
            labelled=labelled,
            real=batch[1].placement.real(self.supervised.patch_size, seen.device)[:, 0],
        )

    def loss(self, outputs: TwoViews, batch: Batch) -> Mapping[str, Tensor]:
        """The supervised terms, and the mean squared difference of probabilities, weighted."""
        assert isinstance(batch, MeanTeacherBatch)
        logits, taught, step = outputs
        terms = self.supervised.loss(first(logits, len(batch.labelled.inputs)), batch.labelled)
        scheme = self.supervised.scheme
        learnt = scheme.activate(finest(logits)[-len(taught) :].float(), 1)
        difference = masked_mean((learnt - scheme.activate(taught.float(), 1)) ** 2, batch.real)
        return {**terms, "consistency": self.weight(step) * difference}

    def score(self, outputs: TwoViews, batch: Batch) -> Mapping[str, float]:
        """The supervised score, and the present weight of the consistency."""
        assert isinstance(batch, MeanTeacherBatch)
        logits, _, step = outputs
        score = self.supervised.score(first(logits, len(batch.labelled.inputs)), batch.labelled)
        return {**score, "consistency_weight": self.weight(step)}

    def after_step(self, model: nn.Module) -> None:
        """Move the teacher."""
        cast(MeanTeacher, model).follow()

    def weight(self, step: int) -> float:
        """Weight of the consistency after ``step`` steps: the ramp of Laine & Aila 2017."""
        ramp = self.settings.ramp * self.steps
        risen = min(1.0, step / ramp) if ramp else 1.0
        return self.settings.weight * math.exp(-5 * (1 - risen) ** 2)


@dataclass(frozen=True)
class PairedPatches(Dataset[tuple[LabelledBatch, RawPatches]]):
    """Batch ``i`` of labelled and batch ``i`` of unlabelled patches."""

    labelled: LabelledPatches
    unlabelled: UnlabelledPatches

    @property
    def sizes(self) -> tuple[int, ...]:
        """See :class:`misfm.batches.Shareable`."""
        return (*self.labelled.sizes, *self.unlabelled.sizes)

    def __getitem__(self, index: int) -> tuple[LabelledBatch, RawPatches]:
        return self.share(index, WHOLE)

    def share(self, index: int, share: Share) -> tuple[LabelledBatch, RawPatches]:
        """See :class:`misfm.batches.Shareable`."""
        return self.labelled.share(index, share), self.unlabelled.share(index, share)


def first(logits: Logits, count: int) -> Logits:
    """Logits of the first ``count`` patches."""
    return logits[:count] if isinstance(logits, Tensor) else [level[:count] for level in logits]
