"""Refusing to judge a network on what it was trained on.

Scans are compared by a hash of their own voxels, so that neither name, nor spacing, nor intensity settings
matter; cases of one subject by what the dataset says of them (:meth:`misfm.data.dataset.Dataset.subject`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from misfm.config import CompleteSettings, FinetuneSettings
from misfm.data.dataset import Case, Dataset
from misfm.data.fingerprint import SCHEME, fingerprint, short_fingerprint
from misfm.data.patches import UnlabelledPatches
from misfm.data.readers import read_volume
from misfm.data.scan import ScanSource
from misfm.errors import ConfigError, DataError
from misfm.planning.splits import choose_cases
from misfm.terminal import logger
from misfm.weights import describe

FILE = "fingerprints.json"
"""In the run folder: the fingerprints of the dataset's images, so that a resumed run need not read them."""
ANATOMY = "phantom-anatomy"
"""The pretext task that learns from generated anatomy alone, which is nobody's scan."""
ADVICE = "learn from others, or set allow_overlap: true to judge on it all the same."

Files = dict[str, dict[str, str]]
"""Path of an image to its ``stamp`` and, empty where it shows nothing, its short ``fingerprint``."""
Seen = dict[str, str]
"""Short fingerprint of a scan that a network learnt from to the beginning of a sentence that says so."""


@dataclass(frozen=True)
class Checked:
    """What the search for leaks found out.

    Attributes:
        files: to be kept in the run folder, see :data:`FILE`.
        scans: short fingerprints of all that the trained weights will have seen, sorted.
    """

    files: Files
    scans: tuple[str, ...]


@dataclass(frozen=True)
class CaseRoles:
    """The cases of a dataset by what they are for, and the scans of each.

    Attributes:
        dataset: theirs.
        training: cases to learn from.
        judging: validation and test cases, each with what it is called.
        files: see :data:`Files`.
    """

    dataset: Dataset
    training: Sequence[Case]
    judging: Sequence[tuple[str, Case]]
    files: Files

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        training: Sequence[Case],
        held_out: Sequence[Case],
        known: Files,
        *,
        skip_damaged: bool = False,
    ) -> CaseRoles:
        """Add the test cases, those of ``imagesTs`` if there is ``labelsTs``, and hash all images.

        Raises:
            DataError: an image that cannot be read; of a test case, unless damaged ones are to be skipped.
        """
        test = dataset.cases("Ts") if (dataset.path / "labelsTs").is_dir() else []
        judging = [*(("validation case", case) for case in held_out), *(("test case", case) for case in test)]
        files = hash_images([*training, *held_out], known)
        files |= hash_images(test, known, skip_damaged=skip_damaged)
        return cls(dataset, training, judging, files)

    def scans(self, case: Case) -> list[str]:
        """Short fingerprints of the channels of a case, without those that show nothing."""
        found = (self.files.get(str(path), {}).get("fingerprint") for path in case.image_paths)
        return [scan for scan in found if scan]


def check_leaks(
    settings: CompleteSettings,
    dataset: Dataset,
    cases: tuple[Sequence[Case], Sequence[Case]],
    out: Path,
    unlabelled: UnlabelledPatches | None = None,
) -> Checked:
    """Refuse a fine-tuning that would be judged on what it, or the weights it starts from, learnt from.

    Args:
        settings: of the fine-tuning.
        dataset: its dataset.
        cases: for training and for validation.
        out: the run folder, which need not exist yet.
        unlabelled: what is learnt from without labels.

    Raises:
        ConfigError: a scan or subject among the validation or test cases is also learnt from, and
            ``settings.allow_overlap`` is off.
        DataError: an image of a training or validation case that cannot be read.
    """
    # A fine-tuning does not need the test cases: damaged ones are no reason not to train.
    parts, training = CaseRoles.of(dataset, *cases, read_files(out), skip_damaged=True), cases[0]
    seen: Seen = {}
    if settings.weights is not None:
        known = describe(settings.weights)
        told = (known.get("data") or {}).get("scans", ())
        seen = dict.fromkeys(told, f"The weights {settings.weights} have learnt from")
        if not any(scan.startswith(SCHEME) for scan in told) and known.get("pretext") != ANATOMY:
            logger.info(
                "%s do not tell which scans they have seen, or as misfm once did: these are not compared.",
                settings.weights,
            )
    again = [case.name for case in training if set(parts.scans(case)) & seen.keys()]
    if again:
        logger.info(
            "%s have seen the scans of %d of %d training cases, such as %s, which is fine.",
            *(settings.weights, len(again), len(training), again[0]),
        )
    for record in unlabelled.records if unlabelled else ():
        seen[short_fingerprint(record.fingerprint)] = f"The unlabelled volume {record.case} holds"
    refuse(parts, seen, allow=settings.allow_overlap)
    scans = {*seen, *(scan for case in training for scan in parts.scans(case))}
    return Checked(parts.files, tuple(sorted(scans)))


def check_pretraining(scans: Iterable[str], settings: FinetuneSettings) -> None:
    """Refuse a pretraining whose weights the fine-tuning that follows would refuse.

    Args:
        scans: short fingerprints of the volumes to pretrain on.
        settings: of the fine-tuning.

    Raises:
        ConfigError: as :func:`check_leaks`.
        DataError: an image that cannot be read.
    """
    dataset = Dataset.open(settings.dataset)
    parts = CaseRoles.of(dataset, *choose_cases(dataset, settings), {})
    refuse(parts, dict.fromkeys(scans, "The pretraining learns from"), allow=settings.allow_overlap)


def refuse(parts: CaseRoles, seen: Seen, *, allow: bool) -> None:
    """Raise a ConfigError at the first leak, or warn where they are allowed.

    Raises:
        ConfigError: a leak, unless ``allow``.
    """
    leaks = list(find_leaks(parts, seen))
    if leaks and not allow:
        raise ConfigError(f"{leaks[0]}: {ADVICE}")
    if leaks:
        logger.warning("%s (%d such overlaps): its scores say little.", leaks[0], len(leaks))


def find_leaks(parts: CaseRoles, seen: Seen) -> Iterator[str]:
    """Say of each validation or test case that is also learnt from, how."""
    seen = dict(seen)
    subjects: dict[str, str] = {}
    for case in parts.training:
        seen.update(dict.fromkeys(parts.scans(case), f"Training case {case.name} holds"))
        subjects.setdefault(parts.dataset.subject(case.name), case.name)
    for what, case in parts.judging:
        subject = parts.dataset.subject(case.name)
        twin = next((scan for scan in parts.scans(case) if scan in seen), None)
        if twin is not None:
            yield f"{seen[twin]} the scan of {what} {case.name}"
        elif subject in subjects:
            yield f"Training case {subjects[subject]} and {what} {case.name} are of one subject, {subject}"


def hash_images(
    cases: Iterable[Case], known: Mapping[str, Mapping[str, str]], *, skip_damaged: bool = False
) -> Files:
    """Fingerprint the images of cases; a file in the state it was ``known`` in is not read.

    Images that are missing are left out: reading their case will tell. So are, with a warning, those that
    cannot be read if they are to be skipped.
    """
    paths = [path for case in cases for path in case.image_paths if path.exists()]
    stamps = {str(path): ScanSource(path, path.name).stamp for path in paths}
    new = sum(known.get(path, {}).get("stamp") != stamp for path, stamp in stamps.items())
    if new:
        logger.info("comparing the content of %d images of the dataset", new)
    files = {}
    for path, stamp in stamps.items():
        same = known.get(path, {})
        try:
            scan = same["fingerprint"] if same.get("stamp") == stamp else hash_image(path, stamp)
        except DataError as error:
            if not skip_damaged:
                raise
            logger.warning("not compared with what is learnt from: %s", error)
        else:
            files[path] = {"stamp": stamp, "fingerprint": scan}
    return files


@cache
def hash_image(path: str, stamp: str) -> str:
    """Return the short fingerprint of an image, or nothing if all of its voxels are equal.

    An empty channel stands for one that was not taken, in many cases of some datasets: it tells no scan.
    The stamp is that of the file, so that one process reads an unchanged file once.
    """
    volume = read_volume(path)
    return "" if volume.data.min() == volume.data.max() else short_fingerprint(fingerprint(volume))


def read_files(out: Path) -> Files:
    """Return what the run folder tells of the dataset's images; nothing where it does not."""
    try:
        content = json.loads((out / FILE).read_bytes())
        return {
            str(path): {key: str(entry[key]) for key in ("stamp", "fingerprint")}
            for path, entry in content.items()
            if entry["fingerprint"] == "" or str(entry["fingerprint"]).startswith(SCHEME)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
