"""What a fine-tuning keeps: which weights, and which labels are cleaned up, chosen on its validation cases.

A run must not end worse than it was: the last weights are kept unless those that did best while training are
better by more than a margin, for on few cases small differences are noise. Of a label that is one piece in
every label map of the run, only the largest part is kept where that raises the label's mean Dice (the rule of
nnU-Net, whose labels need not be one piece).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from misfm.data.dataset import Case, Dataset
from misfm.data.record import Record
from misfm.data.store import Store
from misfm.evaluation.arms import ALL
from misfm.evaluation.case import LabelScores, evaluate_case
from misfm.evaluation.summary import as_result
from misfm.evaluation.validation import SCORE
from misfm.inference.largest_part import keep_largest_parts, labels_in_pieces
from misfm.inference.load import predictor_for
from misfm.inference.quality import Tally, fit_scale
from misfm.terminal import logger
from misfm.weights import WeightsInfo
from misfm.weights.quality import QualityScale

MARGIN = 0.002
"""Dice by which the best weights must be ahead of the last ones to be kept instead."""
LEAST_MAPS = 5
"""Label maps in which a label must be one piece to be taken for an organ that always is.

Two or three cases show the same field of view, and what is one piece there, such as bone, may be several in a
larger one: all but one would be lost.
"""

CaseScores = dict[str, dict[int, LabelScores | None]]


@dataclass(frozen=True)
class Candidate:
    """Weights that may be kept.

    Attributes:
        kept: what they are called.
        step: after which they were the network's.
        model: the network with them, on the device to predict on; None where they were not better than the
            last ones while training, which need not be found out again.
        validation_dice: what they had while training, if anything.
    """

    kept: Literal["last", "best"]
    step: int
    model: nn.Module | None
    validation_dice: float | None = None


def is_better(dice: float | None, last: float | None) -> bool:
    """Whether weights are ahead of the last ones by more than the margin."""
    return (dice or 0) > (last or 0) + MARGIN


@dataclass
class Scored:
    """Scores of a candidate on the cases' own grids, by case and label.

    Attributes:
        candidate: the weights.
        model: the network with them.
        names: of the labels, by value.
        plain: of label maps as predicted.
        cleaned: of the largest parts of all labels that may be cleaned up; others as predicted.
        estimates: of the Dice of each label but the background, by case, from the probabilities alone.
        eligible: labels that may be cleaned up.
    """

    candidate: Candidate
    model: nn.Module
    names: Mapping[int, str]
    eligible: Sequence[int]
    plain: CaseScores = field(default_factory=dict)
    cleaned: CaseScores = field(default_factory=dict)
    estimates: dict[str, list[float | None]] = field(default_factory=dict)

    def mean_dice(self, label: int, *, cleaned: bool) -> float | None:
        """Mean over the cases that have the label, in reference or prediction."""
        cases = (self.cleaned if cleaned else self.plain).values()
        found = [scores.dice for case in cases if (scores := case.get(label)) is not None]
        return float(np.mean(found)) if found else None

    @property
    def largest_part(self) -> tuple[int, ...]:
        """Labels of which the largest part alone has a higher mean Dice than all parts."""
        pairs = {
            label: (self.mean_dice(label, cleaned=False), self.mean_dice(label, cleaned=True))
            for label in self.eligible
        }
        return tuple(label for label, (plain, cleaned) in pairs.items() if (cleaned or 0) > (plain or 0))

    def result(self, largest_part: Sequence[int]) -> dict[str, Any]:
        """Scores in the form of ``misfm evaluate``, with these labels cleaned up."""
        cases = {
            case: {
                self.names[label]: self.cleaned[case][label] if label in largest_part else scores
                for label, scores in row.items()
            }
            for case, row in self.plain.items()
        }
        return as_result(cases, list(self.names.values()))

    @property
    def mean_of_all(self) -> float | None:
        """Mean Dice of all labels, as predicted."""
        found: float | None = self.result(())["mean"][ALL]["dice"]
        return found

    def quality(self, largest_part: Sequence[int]) -> QualityScale | None:
        """How estimates are to be read, with these labels cleaned up; None where there are too few cases."""
        dice: dict[str, list[float | None]] = {}
        for case, estimates in self.estimates.items():
            rows = {**self.plain[case], **{k: self.cleaned[case].get(k) for k in largest_part}}
            found = [rows.get(label) for label in [*self.names][: len(estimates)]]
            dice[case] = [None if scores is None else scores.dice for scores in found]
        return fit_scale(self.estimates, dice)

    def account(self) -> dict[str, Any]:
        """What was compared, for ``chosen.json``."""
        labels = {
            self.names[label]: {
                "dice": self.mean_dice(label, cleaned=False),
                "dice_of_largest_part": self.mean_dice(label, cleaned=True),
                "largest_part": label in self.largest_part,
            }
            for label in self.eligible
        }
        return {
            "step": self.candidate.step,
            SCORE: self.candidate.validation_dice,
            "dice_as_predicted": self.mean_of_all,
            "dice": self.result(self.largest_part)["mean"][ALL]["dice"],
            "labels_in_one_piece": labels,
        }


@dataclass(frozen=True)
class Choice:
    """What is kept.

    Attributes:
        candidate: the weights.
        model: the network with them.
        largest_part: labels of which the largest part alone is kept.
        scores: of the validation cases on their own grids, in the form of ``misfm evaluate``.
        account: what was compared, for ``chosen.json``.
        quality: how the network's own estimates of Dice are to be read, found out on the validation cases.
    """

    candidate: Candidate
    model: nn.Module
    largest_part: tuple[int, ...]
    scores: dict[str, Any]
    account: dict[str, Any]
    quality: QualityScale | None = None

    @property
    def sentence(self) -> str:
        """What was chosen, for people."""
        kept, candidates = self.candidate, self.account["candidates"]
        others = [(name, one) for name, one in candidates.items() if name != kept.kept]
        rest = "".join(
            f", {name} {_text(one['dice'])}"
            if "dice" in one
            else f" (the {name}, of step {one['step']:,}, were no more than {MARGIN} ahead while training)"
            for name, one in others
        )
        own, parts = candidates[kept.kept]["dice"], ", ".join(self.account["largest_part"]) or "of no label"
        return (
            f"kept the {kept.kept} weights, of step {kept.step:,}: validation Dice {_text(own)}{rest}; "
            f"largest part only: {parts}. Validation scores are of what was chosen on them."
        )


def labels_in_one_piece(store: Store, records: Iterable[Record], dataset: Dataset) -> list[int]:
    """Return the labels that occur in enough of these label maps, and in each of them as one piece."""
    candidates = {label for label in dataset.label_names if label != 0}
    seen: Counter[int] = Counter()
    for record in records:
        label_map = store.read_label(record).data[0]
        candidates -= labels_in_pieces(label_map, sorted(candidates), dataset.scheme)
        found = set(np.unique(label_map).tolist())
        seen.update(label for label, own in dataset.scheme.by_code.items() if found & set(own))
    return sorted(label for label in candidates if seen[label] >= LEAST_MAPS)


def choose(
    candidates: Sequence[Candidate],
    info: WeightsInfo,
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    eligible: Sequence[int] = (),
    overlap: float,
) -> Choice:
    """Score weights on labelled cases, as a user would see them, and choose.

    Args:
        candidates: the last weights, and others that must be ahead of them by more than the margin.
        info: how scans are prepared for them.
        dataset: of the cases.
        cases: to choose on; each is read once.
        eligible: labels that may be cleaned up.
        overlap: of windows.
    """
    if cases:
        logger.info("labelling %d validation case(s), to choose what is kept", len(cases))
    scored = score_cases(candidates, info, dataset, cases, eligible=eligible, overlap=overlap)
    accounts = [one.account() for one in scored]
    place = 1 if len(scored) > 1 and is_better(accounts[1]["dice"], accounts[0]["dice"]) else 0
    kept, largest_part = scored[place], scored[place].largest_part
    scores = kept.result(largest_part)
    if largest_part and dataset.scheme.has_regions:
        # Each was judged where all were cleaned up: now these alone are, and if that is no gain, none.
        cleaning = info.model_copy(update={"largest_part": largest_part})
        alone = [replace(kept.candidate, model=kept.model)]
        (again,) = score_cases(alone, cleaning, dataset, cases, overlap=overlap)
        better = (again.mean_of_all or 0) > (kept.mean_of_all or 0)
        largest_part, scores = (largest_part, again.result(())) if better else ((), kept.result(()))
        accounts[place]["dice"] = scores["mean"][ALL]["dice"]
    not_scored = {one.kept: {"step": one.step, SCORE: one.validation_dice} for one in candidates}
    return Choice(
        candidate=kept.candidate,
        model=kept.model,
        largest_part=largest_part,
        scores=scores,
        account={
            "kept": kept.candidate.kept,
            "step": kept.candidate.step,
            "largest_part": [kept.names[label] for label in largest_part],
            "margin": MARGIN,
            "candidates": not_scored
            | {one.candidate.kept: account for one, account in zip(scored, accounts, strict=True)},
        },
        quality=kept.quality(largest_part),
    )


def _text(dice: float | None) -> str:
    return "unknown" if dice is None else f"{dice:.3f}"


def score_cases(
    candidates: Sequence[Candidate],
    info: WeightsInfo,
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    eligible: Sequence[int] = (),
    overlap: float,
) -> list[Scored]:
    """Predict labelled cases with each candidate that has a model, and score them on their own grids.

    What ``info`` says to clean up is cleaned up in all scores, ``eligible`` in those of the largest parts.
    """
    names = {label: name for label, name in dataset.label_names.items() if label != 0}
    scored = [Scored(one, one.model, names, eligible) for one in candidates if one.model is not None]
    predictors = [predictor_for(one.model, info, overlap=overlap) for one in scored]
    for case in cases:
        image, reference = dataset.read_case(case)
        if reference is None:
            continue
        annotated = dataset.annotated_labels(case.name)
        judged = {label: own for label, own in dataset.scheme.by_code.items() if label in annotated}
        for predictor, one in zip(predictors, scored, strict=True):
            tally = Tally()
            predicted = predictor.predict(image, watchers=[tally])
            one.estimates[case.name] = tally.estimates()
            ignore = dataset.ignore_label
            one.plain[case.name] = evaluate_case(predicted, reference, judged, ignore=ignore)
            cleanable = [label for label in eligible if label in judged]
            changed = keep_largest_parts(predicted.data[0], cleanable, dataset.scheme)
            # Where regions overlap, the clean-up of one changes others.
            regions = dataset.scheme.has_regions
            affected = {label: own for label, own in judged.items() if regions or label in changed}
            cleaned = evaluate_case(predicted, reference, affected, ignore=ignore) if changed else {}
            one.cleaned[case.name] = one.plain[case.name] | cleaned
    return scored
