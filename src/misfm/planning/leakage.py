"""Refusing to judge a network on what it was trained on.

Scans are compared by a hash of their own voxels, so that neither name, nor spacing, nor intensity settings
matter; cases of one subject by what the dataset says of them (:meth:`misfm.data.dataset.Dataset.subject`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.dataset import Case
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.fingerprint import SCHEME, short_fingerprint
from misfm.data.patches import UnlabelledPatches
from misfm.errors import ConfigError
from misfm.planning.splits import choose_cases
from misfm.terminal import logger
from misfm.weights import Opened

ANATOMY = "phantom-anatomy"
"""The pretext task that learns from generated anatomy alone, which is nobody's scan."""
ADVICE = "learn from others, or add --set allow_overlap=true to judge on it all the same."

Seen = dict[str, str]
"""Short fingerprint of a scan that a network learnt from to the beginning of a sentence that says so."""


@dataclass(frozen=True)
class CaseRoles:
    """The cases of a dataset by what they are for, and the scans of each.

    Attributes:
        images: what is known of the dataset's images.
        training: cases to learn from.
        judging: validation and test cases, each with what it is called.
    """

    images: DatasetFingerprint
    training: Sequence[Case]
    judging: Sequence[tuple[str, Case]]

    @classmethod
    def of(
        cls,
        images: DatasetFingerprint,
        training: Sequence[Case],
        held_out: Sequence[Case],
        *,
        skip_damaged: bool = False,
    ) -> CaseRoles:
        """Add the test cases, those of ``imagesTs`` if there is ``labelsTs``, and find out about all images.

        Raises:
            DataError: an image that cannot be read; of a test case, unless damaged ones are to be skipped.
        """
        dataset = images.dataset
        test = dataset.cases("Ts") if (dataset.path / "labelsTs").is_dir() else []
        judging = [*(("validation case", case) for case in held_out), *(("test case", case) for case in test)]
        images.add([*training, *held_out])
        images.add(test, skip_damaged=skip_damaged)
        return cls(images, training, judging)


def check_leaks(
    settings: CompleteSettings,
    images: DatasetFingerprint,
    cases: tuple[Sequence[Case], Sequence[Case]],
    weights: Opened | None = None,
    unlabelled: UnlabelledPatches | None = None,
) -> tuple[str, ...]:
    """Refuse a fine-tuning that would be judged on what it, or the weights it starts from, learnt from.

    Args:
        settings: of the fine-tuning.
        images: of its dataset.
        cases: for training and for validation.
        weights: to start from.
        unlabelled: what is learnt from without labels.

    Returns:
        Short fingerprints of all scans that the trained weights will have seen, sorted.

    Raises:
        ConfigError: a scan or subject among the validation or test cases is also learnt from, and
            ``settings.allow_overlap`` is off.
        DataError: an image of a training or validation case that cannot be read.
    """
    # A fine-tuning does not need the test cases: damaged ones are no reason not to train.
    roles, training = CaseRoles.of(images, *cases, skip_damaged=True), cases[0]
    seen: Seen = {}
    if weights is not None:
        info = weights.info
        seen = dict.fromkeys(weights.scans, f"The weights {settings.weights} have learnt from")
        comparable = any(scan.startswith(SCHEME) for scan in weights.scans)
        if not comparable and (info is None or info.pretext != ANATOMY):
            logger.info(
                "%s do not say which scans they have seen, or in a form of earlier versions: these are not "
                "compared.",
                settings.weights,
            )
    again = [case.name for case in training if set(images.scans(case)) & seen.keys()]
    if again:
        logger.info(
            "%s have seen the scans of %d of %d training cases, such as %s, which is fine.",
            *(settings.weights, len(again), len(training), again[0]),
        )
    for record in unlabelled.records if unlabelled else ():
        holds = f"The unlabelled volume {record.case} holds"
        seen |= dict.fromkeys(map(short_fingerprint, record.scans or (record.fingerprint,)), holds)
    refuse(roles, seen, allow=settings.allow_overlap)
    return tuple(sorted({*seen, *(scan for case in training for scan in images.scans(case))}))


def check_pretraining(scans: Iterable[str], settings: FinetuneSettings, images: DatasetFingerprint) -> None:
    """Refuse a pretraining whose weights the fine-tuning that follows would refuse.

    Args:
        scans: short fingerprints of the volumes to pretrain on.
        settings: of the fine-tuning.
        images: of its dataset.

    Raises:
        ConfigError: as :func:`check_leaks`.
        DataError: an image that cannot be read.
    """
    roles = CaseRoles.of(images, *choose_cases(images.dataset, settings))
    refuse(roles, dict.fromkeys(scans, "The pretraining learns from"), allow=settings.allow_overlap)


def refuse(roles: CaseRoles, seen: Seen, *, allow: bool) -> None:
    """Raise a ConfigError at the first leak, or warn where they are allowed.

    Raises:
        ConfigError: a leak, unless ``allow``.
    """
    leaks = list(find_leaks(roles, seen))
    if leaks and not allow:
        raise ConfigError(f"{leaks[0]}: {ADVICE}")
    if leaks:
        logger.warning("%s (%d such overlaps): its scores say little.", leaks[0], len(leaks))


def find_leaks(roles: CaseRoles, seen: Seen) -> Iterator[str]:
    """Say of each validation or test case that is also learnt from, how."""
    seen = dict(seen)
    subjects: dict[str, str] = {}
    for case in roles.training:
        seen.update(dict.fromkeys(roles.images.scans(case), f"Training case {case.name} holds"))
        subjects.setdefault(roles.images.dataset.subject(case.name), case.name)
    for what, case in roles.judging:
        subject = roles.images.dataset.subject(case.name)
        twin = next((scan for scan in roles.images.scans(case) if scan in seen), None)
        if twin is not None:
            yield f"{seen[twin]} the scan of {what} {case.name}"
        elif subject in subjects:
            yield f"Training case {subjects[subject]} and {what} {case.name} are of one subject, {subject}"
