"""Which scans to label: those of which a run is least sure; with no run, those that stand for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfm.data.dataset_fingerprint import known_images
from misfm.data.fingerprint import short_fingerprint
from misfm.data.intensity import Normalisation, fit, normalise
from misfm.data.preprocess import resample
from misfm.data.record import Record
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.errors import DataError
from misfm.inference.features import embed
from misfm.inference.load import load_weights
from misfm.inference.members import members_of
from misfm.inference.quality import Tally, expected_dice, mean_of
from misfm.models import SegmentationModel
from misfm.planning.selection import Pick, Vectors, least_sure, representatives, standardise
from misfm.planning.splits import SPLIT
from misfm.training.loop import best_device
from misfm.volume import Volume
from misfm.weights import from_pretrained, open_source
from misfm.weights.pretrained import UNRECORDED_PATCH_SIZE
from misfm.weights.published import BUILTIN

OVERLAP = 0.25
"""Of windows: half of what predictions have, for scans are only ranked."""
EVIDENCE = {
    False: "First labels chosen so: two choices gave test Dice 0.845 and 0.850, six random ones 0.826 to "
    "0.851 (hippocampus MR): a sign, and no proof, that they beat a random choice.",
    True: "Whether next labels chosen so beat a random choice has not been measured.",
}
"""What is known of suggestions without and with a run (docs/results.md)."""
MOST_NAMED = 5
"""Scans named of those that a suggestion stands for."""


def suggest(
    store_path: Path,
    count: int,
    *,
    run: str | None = None,
    weights: str = BUILTIN,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Choose scans to label.

    Args:
        store_path: the store they are in. What has a label map there, or was trained or validated on by the
            run, is labelled already and never suggested.
        count: how many.
        run: a fine-tuning, weights of one, or a cross-validation; None where there is none yet.
        weights: whose features tell which scans look alike, with no run; a run has its own.
        progress: called with the number of scans looked at and their total.

    Returns:
        ``suggested``, the first to label first: ``case``, ``source``, ``why``, ``stands_for``, and with a run
        ``quality``. ``considered`` and ``labelled``, numbers of scans; ``by``, what they were chosen by;
        ``evidence``, what is known of such choices.

    Raises:
        DataError: no store, or nothing in it to label.
        WeightsError: weights that cannot be read.
        ConfigError: weights that take other channels than the scans have.
    """
    store = Store.open(store_path)
    records = store.records()
    seen = labelled_scans(run) if run is not None else frozenset[str]()
    labelled = [r for r in records if r.labels is not None or short_fingerprint(r.fingerprint) in seen]
    others = [r for r in records if r not in labelled]
    if not others:
        raise DataError(
            f"The store {store_path} holds nothing to label: {len(labelled)} of its {len(records)} scans are "
            "labelled. Ingest more scans."
        )
    eye = Eye(run, weights)
    vectors, expected = look(store, [*others, *labelled], eye, progress)
    to_label, covered = np.split(standardise(vectors), [len(others)])
    quality = None if run is None else expected[: len(others)]
    if quality is None:
        picks = representatives(to_label, count, covered=covered)
    else:
        picks = least_sure(to_label, quality, count, covered=covered)
    return {
        "store": str(store_path),
        "by": f"features of {weights}" if run is None else f"what {run} is least sure of",
        "considered": len(others),
        "labelled": len(labelled),
        "evidence": EVIDENCE[run is not None],
        "suggested": [describe(pick, others, quality, is_dice=eye.scale is not None) for pick in picks],
    }


def labelled_scans(run: str) -> frozenset[str]:
    """Short fingerprints of the scans that a run trained or validated on.

    Of weights without their run folder, those of all scans that they have learnt from.
    """
    found: set[str] = set()
    for member in members_of(run):
        folder = Path(str(member))
        if (folder / SPLIT).exists():
            cases = {name for part in read_split(folder / SPLIT)[0].values() for name in part}
            found |= {
                short_fingerprint(image.scan)
                for path, image in known_images(folder).items()
                if Path(path).parent.name == "imagesTr" and case_of(Path(path)) in cases
            }
        else:
            found |= set(open_source(member).scans)
    return frozenset(found)


def case_of(path: Path) -> str:
    """Return the case of an image ``CASE_0000.nii.gz`` of a dataset."""
    return path.name.partition(".")[0].rpartition("_")[0]


def look(
    store: Store, records: Sequence[Record], eye: Eye, progress: Callable[[int, int], None] | None
) -> tuple[Vectors, list[float]]:
    """Return the vectors (N, F) of scans, and the Dice to expect of label maps; 0 where nothing is found."""
    vectors, quality = [], []
    for number, record in enumerate(records, start=1):
        volume = store.read(record)
        vectors.append(eye.vector(volume, record))
        quality.append(eye.quality(volume))
        if progress is not None:
            progress(number, len(records))
    return np.stack(vectors), quality


class Eye:
    """What looks at scans: an encoder, and with a run what it expects of its label maps.

    Args:
        run: a fine-tuning, weights of one or a cross-validation, or None.
        weights: whose encoder it is, without a run.

    Attributes:
        scale: how estimates of Dice are read, as of predictions; None where validation cases are too few.
    """

    def __init__(self, run: str | None, weights: str) -> None:
        source = weights if run is None else members_of(run)[0]
        opened = open_source(source)
        info = opened.info
        model = from_pretrained(opened).to(best_device()).eval()
        assert isinstance(model, SegmentationModel)
        self._backbone = model.backbone
        self._window = (info.patch_size if info is not None else None) or UNRECORDED_PATCH_SIZE
        loaded = None if run is None else load_weights(run, overlap=OVERLAP)
        self._predictor = None if loaded is None else loaded.predictor
        self.scale = None if loaded is None else loaded.info.quality

    def vector(self, volume: Volume, record: Record) -> NDArray[np.float64]:
        """Return the vector of a scan of a store."""
        normalisations: Sequence[Normalisation] = record.normalisation
        if self._predictor is not None:
            spec = self._predictor.spec
            if len(spec.rules) == len(volume.data):
                channels = zip(spec.rules, volume.data, strict=True)
                normalisations = [fit(rule, Volume(c[None], volume.affine)) for rule, c in channels]
            volume = resample(volume, spec.spacing or "native")
        image = torch.from_numpy(normalise(normalisations, volume.data))
        return embed(self._backbone, image, self._window)

    def quality(self, volume: Volume) -> float:
        """Return the Dice that a run expects of its label map."""
        if self._predictor is None:
            return 0.0
        tally = Tally()
        self._predictor.predict(volume, watchers=[tally])
        return mean_of(expected_dice(tally.estimates(), self.scale)) or 0.0


def describe(
    pick: Pick, records: Sequence[Record], quality: Sequence[float] | None, *, is_dice: bool
) -> dict[str, Any]:
    """Say which scan was picked, and why; ``is_dice``: whether ``quality`` was fitted on validation cases."""
    record, like = records[pick.index], [records[i].case for i in pick.stands_for[1:]]
    some = ", ".join(like[:MOST_NAMED]) + (
        f" and {len(like) - MOST_NAMED} more" if len(like) > MOST_NAMED else ""
    )
    alike = f"stands for {some}" if like else "is like no other"
    found: dict[str, Any] = {"case": record.case, "source": record.source}
    if quality is None:
        return {**found, "why": alike, "stands_for": like}
    worse = sum(one < quality[pick.index] for one in quality)
    said = f"expected Dice {quality[pick.index]:.2f}" if is_dice else "how sure the run is of it"
    why = f"{said}, place {worse + 1} from below of {len(quality)}; {alike}"
    return {**found, "why": why, "stands_for": like, "quality": quality[pick.index]}
