"""Judging a segmentation network: quickly while it trains, and as a user would see it at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from misfm.data.dataset import Case, Dataset
from misfm.data.intensity import normalise
from misfm.data.record import Record
from misfm.data.store import Store
from misfm.evaluation.case import evaluate_case
from misfm.evaluation.metrics import confusion_matrix, dice
from misfm.evaluation.summary import as_result
from misfm.inference.load import predictor_for
from misfm.inference.sliding_window import predict_logits
from misfm.volume import Shape
from misfm.weights import WeightsInfo

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
        labels = [label for label in self.dataset.label_names if label != 0]
        scores = np.array([self._case(model, record) for record in self.records], dtype=np.float64)
        # A label absent in prediction and reference, or not contoured in a case, counts nowhere.
        known = np.ma.masked_invalid(scores)
        numbers = {"validation_dice": float(known.mean(axis=1).mean())}
        for label, column in zip(labels, known.mean(axis=0).filled(np.nan), strict=True):
            numbers[f"validation_dice_{self.dataset.label_names[label]}"] = float(column)
        return numbers

    def _case(self, model: nn.Module, record: Record) -> list[float]:
        image = torch.from_numpy(normalise(record.normalisation, self.store.read(record).data))
        slabs = predict_logits(model, image, self.patch_size, overlap=TRAINING_OVERLAP)
        predicted = np.concatenate([slab.max(0).indices.cpu().numpy() for _, slab in slabs])
        reference = self.store.read_label(record).data[0].astype(np.int64)
        num_classes = max(self.dataset.label_names) + 1
        if self.dataset.ignore_label is not None:
            known = reference != self.dataset.ignore_label
            predicted, reference = predicted[known], reference[known]
        scores = dice(confusion_matrix(predicted, reference, num_classes))
        annotated = self.dataset.annotated_labels(record.case)
        labels = [label for label in self.dataset.label_names if label != 0]
        found = [scores[label - 1] if label in annotated else None for label in labels]
        return [np.nan if value is None else value for value in found]


def score_cases(
    model: nn.Module, info: WeightsInfo, dataset: Dataset, cases: Sequence[Case], *, overlap: float
) -> dict[str, Any]:
    """Predict labelled cases and score them on their own grids, in the form of ``misfm evaluate``."""
    predictor = predictor_for(model, info, overlap=overlap)
    names = {label: name for label, name in dataset.label_names.items() if label != 0}
    scores = {}
    for case in cases:
        image, reference = dataset.read_case(case)
        if reference is not None:
            judged = [label for label in names if label in dataset.annotated_labels(case.name)]
            found = evaluate_case(predictor.predict(image), reference, judged, ignore=dataset.ignore_label)
            scores[case.name] = {names[label]: score for label, score in found.items()}
    return as_result(scores, list(names.values()))
