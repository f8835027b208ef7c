"""Judging a segmentation network quickly, while it trains; :mod:`.choice` does it as a user would see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from misfm import world
from misfm.data.dataset import Dataset
from misfm.data.intensity import normalise
from misfm.data.record import Record
from misfm.data.store import Store
from misfm.evaluation.metrics import compact, confusion_matrix, dice
from misfm.inference.sliding_window import predict_logits
from misfm.training.precision import judging
from misfm.volume import Shape

SCORE = "validation_dice"
"""What the mean is called in ``metrics.jsonl``."""
TRAINING_OVERLAP = 0.25
"""Overlap of windows while training, half of the final one: a quarter of the windows."""


@dataclass(frozen=True)
class DiceValidation:
    """Mean Dice of held-out cases on the grid of the store, by sliding window.

    Attributes:
        store: where the cases are.
        records: the held-out cases.
        dataset: names of the labels.
        patch_size: of the windows.
    """

    store: Store
    records: Sequence[Record]
    dataset: Dataset
    patch_size: Shape

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Return ``validation_dice`` (mean over cases of the mean over labels) and one number a label."""
        rows = world.shared_out(partial(self._case, model), self.records)
        scores = np.array(rows, dtype=np.float64)
        # A label absent in prediction and reference, or not contoured in a case, counts nowhere.
        known = np.ma.masked_invalid(scores)
        numbers = {SCORE: float(known.mean(axis=1).mean())}
        for name, column in zip(self.dataset.scheme.values, known.mean(axis=0).filled(np.nan), strict=True):
            numbers[f"{SCORE}_{name}"] = float(column)
        return numbers

    def _case(self, model: nn.Module, record: Record) -> list[float]:
        scheme, values = self.dataset.scheme, self.dataset.scheme.known[1:]
        image = torch.from_numpy(normalise(record.normalisation, self.store.read(record).data))
        with judging(next(model.parameters()).device):
            slabs = predict_logits(model, image, self.patch_size, overlap=TRAINING_OVERLAP)
            decided = (scheme.decide(scheme.activate(slab, 0)) for _, slab in slabs)
            predicted = np.concatenate([scheme.mask(one) for one in decided])
        reference = self.store.read_label(record).data[0]
        if scheme.ignore is not None:
            known = reference != scheme.ignore
            predicted, reference = predicted[known], reference[known]
        confusion = confusion_matrix(compact(predicted, values), compact(reference, values), len(values) + 1)
        groups = [[values.index(value) + 1 for value in own] for own in scheme.values.values()]
        scores = dice(confusion, groups)
        annotated = self.dataset.annotated_labels(record.case)
        found = [
            score if code in annotated else None
            for code, score in zip(scheme.codes.values(), scores, strict=True)
        ]
        return [np.nan if value is None else value for value in found]
