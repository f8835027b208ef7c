"""One case from its scan to the files of its label map, in three parts that may run in different threads.

Reading and writing need a processor, computing needs the network's device. The parts can also be done at once
in another process, which has the weights for itself (:func:`label_elsewhere`); what becomes of a case then
travels back, for one process alone keeps account of a folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from misfm.data.checks import usable
from misfm.data.preprocess import canonical
from misfm.data.writers import WRITERS, LabelledScan
from misfm.data.writers.nifti import write_shares
from misfm.errors import ConfigError, DataError
from misfm.files import checksum
from misfm.inference.cases import Case
from misfm.inference.fitness import misfits
from misfm.inference.load import LoadedWeights, load_weights
from misfm.inference.precision import Precision, name_of
from misfm.inference.predictions import UNCERTAINTY, CaseResult
from misfm.inference.predictor import PredictionSpec, Prepared, Watcher
from misfm.inference.probability_file import SUFFIX, probability_file
from misfm.inference.quality import Tally, UncertaintyMap, quality_of
from misfm.signals import stop_if_requested
from misfm.volume import Volume
from misfm.weights.source import Source

PRECISION = "precision"
"""In ``predictions.json``: what the case was computed in."""


@dataclass(frozen=True)
class PredictionOptions:
    """How label maps are made and written.

    Attributes:
        overlap: share of a window that its neighbour repeats, [0, 1).
        tta: average predictions of mirrored windows, see :func:`misfm.inference.load.load_weights`.
        format: one of :data:`misfm.data.writers.WRITERS`.
        probabilities: write those of classes or regions, too (:mod:`misfm.inference.probability_file`).
        force: label scans, too, that are not of the kind that the weights are for (:mod:`.fitness`).
        uncertainty: write beside each label map how unsure each of its voxels is.
        precision: what networks are computed in (:mod:`misfm.inference.precision`).
    """

    overlap: float = 0.5
    tta: bool = False
    format: str = "nifti"
    probabilities: bool = False
    force: bool = False
    uncertainty: bool = False
    precision: Precision = "auto"

    def load(self, sources: Sequence[Source], device: torch.device | None = None) -> LoadedWeights:
        """Return weights that label so; on the best device there is, if none is given."""
        return load_weights(
            sources, overlap=self.overlap, tta=self.tta, precision=self.precision, device=device
        )


@dataclass(frozen=True)
class Job:
    """A case to label.

    Attributes:
        case: its scans.
        path: of the label map.
        map_path: where to write how unsure voxels are, if anywhere.
        notes: what is known of it before, a sentence each.
    """

    case: Case
    path: Path
    map_path: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Read:
    """A scan that was read."""

    prepared: Prepared
    warnings: list[str]


@dataclass
class Computed:
    """Labels that were made, and the files that wait for the end of it."""

    read: Read
    labels: Any
    tally: Tally
    unsure: UncertaintyMap
    dtype: torch.dtype
    files: ExitStack
    more: dict[str, Any] = field(default_factory=dict)


class CaseWork:
    """Labels cases.

    Args:
        weights: that label.
        options: how.
    """

    def __init__(self, weights: LoadedWeights, options: PredictionOptions) -> None:
        self.weights = weights
        self.options = options
        self.writer = WRITERS.get(options.format)()

    def read(self, job: Job) -> Read:
        """Read a case and bring it to the grid of the network's input.

        Raises:
            DataError: it cannot be used; so do the other parts.
        """
        case, info = job.case, self.weights.info
        with usable(case.path):
            self.writer.check(case.channels[0])
            volume = case.read(info.in_channels)
            warnings = [*job.notes, *case.notes]
            warnings += misfits(volume, case.modalities, info, force=self.options.force)
            if is_smaller_than_window(volume, self.weights.predictor.spec):
                warnings.append(f"the scan is smaller than the patch {info.patch_size}: it is padded.")
            return Read(self.weights.predictor.prepare(volume), warnings)

    def compute(self, job: Job, read: Read, progress: Callable[[float], None]) -> Computed:
        """Run the network over a case that was read."""
        tally, unsure = Tally(), UncertaintyMap()
        watchers: list[Watcher] = [tally] if job.map_path is None else [tally, unsure]
        predictor, more = self.weights.predictor, {}
        with usable(job.case.path), ExitStack() as files:
            if self.options.probabilities:
                file = self.probabilities_path(job.path)
                more["probabilities"] = file.name
                watchers.append(files.enter_context(probability_file(file, read.prepared.scan)))
            labels = predictor.label(read.prepared, watchers=watchers, progress=progress)
            return Computed(read, labels, tally, unsure, predictor.dtype, files.pop_all(), more)

    def write(self, job: Job, made: Computed) -> CaseResult:
        """Write the label map of a case and what belongs to it."""
        info, predictor, more = self.weights.info, self.weights.predictor, made.more
        prepared, warnings = made.read.prepared, made.read.warnings
        with usable(job.case.path):
            with made.files:
                label_map = predictor.finish(prepared, made.labels, notes=warnings)
            if job.map_path is not None:
                write_shares(job.map_path, made.unsure.of(prepared.scan))
                more[UNCERTAINTY] = job.map_path.name
            quality = quality_of(made.tally, list(info.labels), info.quality)
            more["quality"] = quality.as_json()
            more[PRECISION] = name_of(made.dtype)
            if quality.is_low:
                warnings.append(f"{quality.sentence}.")
            labelled = LabelledScan(label_map, info.labels, job.case.channels[0], self.weights.sha256)
            self.writer.write(job.path, labelled)
            crc32 = checksum(job.path.read_bytes())
            labels, volume_ml = self.writer.values(info.labels), labelled.volume_ml
        return CaseResult(job.case.source, job.path.name, labels, volume_ml, crc32, warnings, more)

    def drop(self, made: Computed) -> None:
        """Give up what was computed and not written; nothing of it stays on disk."""
        made.files.__exit__(DataError, DataError("given up"), None)

    def probabilities_path(self, path: Path) -> Path:
        """The file of probabilities beside a label map."""
        return path.with_name(path.name.removesuffix(self.writer.suffix) + SUFFIX)


def is_smaller_than_window(volume: Volume, spec: PredictionSpec) -> bool:
    """Whether a scan, resampled for the network, is shorter than a window along an axis."""
    upright = canonical(volume)
    sides = zip(upright.shape, upright.spacing, spec.spacing or upright.spacing, strict=True)
    return any(
        round(side * spacing / target) < wanted
        for (side, spacing, target), wanted in zip(sides, spec.patch_size, strict=True)
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a case in another process: a result, or why there is none."""

    result: CaseResult | None = None
    failure: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """What another process needs to label as this one would.

    Attributes:
        sources: of the weights; files by absolute paths.
        sha256: hashes of the weights: they may be written anew while label maps are made.
        options: how.
        threads: of torch; 0 leaves them as the process was started.
        spread: whether workers are numbered, each for the GPU of its number.
    """

    sources: tuple[Source, ...]
    sha256: Mapping[str, str]
    options: PredictionOptions
    threads: int = 0
    spread: bool = False

    @staticmethod
    def of(
        sources: Sequence[Source], weights: LoadedWeights, options: PredictionOptions, workers: int
    ) -> Elsewhere:
        """For so many processes of this machine; 0: for those of others, which know their threads."""
        threads = max(1, (os.cpu_count() or 1) // workers) if workers else 0
        return Elsewhere(absolute(sources), weights.sha256, options, threads, spread=workers > 0)


def absolute(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Return sources of weights with files by absolute paths; names stay names."""
    return tuple(
        Path(source).absolute() if isinstance(source, str | os.PathLike) and Path(source).exists() else source
        for source in sources
    )


_lock = threading.Lock()
_loaded: list[tuple[tuple[Any, ...], CaseWork]] = []
"""What this process last labelled with: weights are read once, not once a case."""


def label_elsewhere(how: Elsewhere, job: Job) -> Outcome:
    """Label a case in a worker; its failure is an outcome.

    Raises:
        Interrupted: whoever waits for it was asked to stop.
    """

    def go_on(_: float) -> None:
        stop_if_requested()

    try:
        work = _work_of(how)
        made = work.compute(job, work.read(job), go_on)
        return Outcome(work.write(job, made))
    except DataError as error:
        return Outcome(failure=str(error))


def _work_of(how: Elsewhere) -> CaseWork:
    key = tuple(how.sha256.values()), how.options, how.threads, how.spread
    with _lock:
        if not _loaded or _loaded[0][0] != key:
            if how.threads:
                torch.set_num_threads(how.threads)
            weights = how.options.load(how.sources, _own_device() if how.spread else None)
            if sorted(weights.sha256.values()) != sorted(how.sha256.values()):
                raise ConfigError(
                    f"{', '.join(map(str, how.sources))} changed while it was predicted with; predict again "
                    "with the new weights."
                )
            weights = replace(weights, sha256=how.sha256)  # under the names that they were given by
            _loaded[:] = [(key, CaseWork(weights, how.options))]
        return _loaded[0][1]


def _own_device() -> torch.device | None:
    """The GPU of this worker, by its number among the workers; None where there are none."""
    from distributed import get_worker

    count = torch.cuda.device_count()
    name = str(get_worker().name)
    return torch.device("cuda", int(name) % count) if count and name.isdecimal() else None
