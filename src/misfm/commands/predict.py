"""Prediction: scans in, label maps on their own grids out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from misfm.data.checks import usable
from misfm.data.preprocess import canonical
from misfm.data.scan import find_scans
from misfm.data.writers import WRITERS, LabelledScan, MaskWriter
from misfm.data.writers.nifti import NiftiWriter, write_shares
from misfm.errors import ConfigError, DataError
from misfm.files import checksum, make_folder
from misfm.inference.cases import Case, group_channels
from misfm.inference.fitness import misfits
from misfm.inference.load import LoadedWeights, load_predictor, load_weights
from misfm.inference.predictions import UNCERTAINTY, CaseResult, Predictions
from misfm.inference.predictor import PredictionSpec, Watcher
from misfm.inference.probability_file import SUFFIX, probability_file
from misfm.inference.quality import Tally, UncertaintyMap, quality_of
from misfm.terminal import logger
from misfm.text import file_name
from misfm.volume import Volume
from misfm.weights.file import installed_versions
from misfm.weights.source import Source


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
    """

    overlap: float = 0.5
    tta: bool = False
    format: str = "nifti"
    probabilities: bool = False
    force: bool = False
    uncertainty: bool = False


@dataclass(frozen=True)
class Prediction:
    """What became of the scans.

    Attributes:
        written: label map by case.
        failed: reason by case.
        warnings: what there is to note, by case; only cases of which there is something.
    """

    written: Mapping[str, Path]
    failed: Mapping[str, str]
    warnings: Mapping[str, Sequence[str]]


def predict(weights_or_run: Source | Sequence[Source], volume: Volume) -> Volume:
    """Label one scan.

    Args:
        weights_or_run: a run folder or weights file, fine-tuned on label maps. Several label together, by the
            mean of their class probabilities, and the folder of a cross-validation stands for its folds.
        volume: (C, D, H, W), voxels as in the file.

    Returns:
        Label map (1, D, H, W) uint8 on the scan's own grid, with exactly its affine.

    Raises:
        WeightsError: weights that cannot be read, or that were pretrained only.
        ConfigError: weights that differ in how scans are prepared, or in what they label.
        DataError: another number of channels than the network takes.
    """
    return load_predictor(weights_or_run).predict(volume)


def predict_files(
    weights_or_run: Source | Sequence[Source],
    inputs: Sequence[Path],
    output_dir: Path,
    options: PredictionOptions = PredictionOptions(),
    *,
    progress: Callable[[float, int], None] | None = None,
) -> Prediction:
    """Label scans and write each as ``CASE.nii.gz``; one that cannot be used does not stop the others.

    ``predictions.json`` beside the label maps says whose they are (:mod:`misfm.inference.predictions`). Cases
    that it lists as done, by the same weights and of the same files, are not done again. Where a case has a
    name that no file can have, the file has one like it (:func:`label_map_paths`).

    Args:
        weights_or_run: as for :func:`predict`.
        inputs: files, DICOM folders or trees of scans. ``CASE_0000``, ``CASE_0001``, … are the channels of
            ``CASE``, as in nnU-Net datasets.
        output_dir: made where missing.
        options: how.
        progress: called with the number of cases done, the last of them in part, and their total.

    Raises:
        DataError: no scans, or a folder that cannot be made.
        ConfigError: a label map would overwrite a scan, no such format, or as for :func:`predict`.
        WeightsError: as for :func:`predict`.
    """
    writer = WRITERS.get(options.format)()
    weights = load_weights(weights_or_run, overlap=options.overlap, tta=options.tta)
    made_with = {"misfm": installed_versions()["misfm"], **asdict(options)}
    del made_with["force"]  # which changes no label map
    predictions = Predictions(output_dir, weights.sha256, made_with)
    own = predictions.masks()  # no scans, where the folder of the scans is that of the label maps
    scans = [scan for scan in find_scans(inputs) if scan.path.resolve() not in own]
    cases = group_channels(scans, weights.info.in_channels, weights.info.channel_names)
    paths = label_map_paths([case.name for case in cases], output_dir, writer.suffix)
    maps = uncertainty_paths(paths, writer.suffix) if options.uncertainty else {}
    refuse_overwriting(cases, paths)
    make_folder(output_dir)
    predictions.begin()
    work = _Work(weights, writer, predictions, options, maps)
    writer.write_shared(output_dir, weights.info.labels)
    tell = progress or (lambda done, total: None)
    for number, case in enumerate(cases):
        work.label(case, paths[case.name], partial(_within, tell, number, len(cases)))
        tell(number + 1, len(cases))
    if work.num_found:
        logger.info(
            "%d label map(s) were there already, of the same scans by the same weights.", work.num_found
        )
    return Prediction(work.written, work.failed, work.warnings)


def _within(tell: Callable[[float, int], None], done: int, total: int, share: float) -> None:
    """Tell what share of the case after those that are done is done, too."""
    if share < 1:
        tell(done + share, total)


class _Work:
    """Labels case after case and keeps account.

    Args:
        weights: that label.
        writer: of the label maps.
        predictions: gets what there is to know about each case.
        options: how.
        maps: where to write how unsure voxels are, by case.
    """

    def __init__(
        self,
        weights: LoadedWeights,
        writer: MaskWriter,
        predictions: Predictions,
        options: PredictionOptions,
        maps: Mapping[str, Path],
    ) -> None:
        self.weights = weights
        self.writer = writer
        self.predictions = predictions
        self.options = options
        self.maps = maps
        self.written: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        self.warnings: dict[str, list[str]] = {}
        self.num_found = 0

    def label(self, case: Case, path: Path, progress: Callable[[float], None]) -> None:
        """Label a case, or find it done; a failure is noted."""
        found = self.predictions.finished(case.name, case.source)
        beside = [self._probabilities(path)] if self.options.probabilities else []
        beside += [self.maps[case.name]] if case.name in self.maps else []
        if found and all(file.is_file() for file in beside):
            self.num_found += 1
            self._note(case, path, found.get("warnings", []))
            return
        try:
            with usable(case.path):
                result = self._result(case, path, progress)
        except DataError as error:
            self.failed[case.name] = str(error)
            self.predictions.fail(case.name, str(error))
            logger.warning("%s", error)
            if path.exists():
                logger.warning("%s stays as it was: it is of an earlier command.", path)
            return
        self.predictions.add(case.name, result)
        logger.info("%s -> %s: %s", result.of.path, path.name, result.more["quality"]["says"])
        self._note(case, path, result.warnings)
        for warning in result.warnings:
            logger.warning("%s: %s", case.name, warning)

    def _note(self, case: Case, path: Path, warnings: list[str]) -> None:
        self.written[case.name] = path
        if warnings:
            self.warnings[case.name] = warnings

    def _result(self, case: Case, path: Path, progress: Callable[[float], None]) -> CaseResult:
        """Label a case and write its label map; whatever finds something to note adds a warning."""
        source, info = case.source, self.weights.info
        self.writer.check(case.channels[0])
        warnings = self.predictions.check_mask(case.name, path.name, source)
        volume = case.read(info.in_channels)
        warnings += case.notes
        warnings += misfits(volume, case.modalities, info, force=self.options.force)
        if is_smaller_than_window(volume, self.weights.predictor.spec):
            warnings.append(f"the scan is smaller than the patch {info.patch_size}: it is padded.")
        tally, unsure, map_path = Tally(), UncertaintyMap(), self.maps.get(case.name)
        watchers: list[Watcher] = [tally] if map_path is None else [tally, unsure]
        more: dict[str, Any] = {}
        with ExitStack() as files:
            if self.options.probabilities:
                file = self._probabilities(path)
                more["probabilities"] = file.name
                watchers.append(files.enter_context(probability_file(file, volume)))
            label_map = self.weights.predictor.predict(
                volume, watchers=watchers, progress=progress, notes=warnings
            )
        if map_path is not None:
            write_shares(map_path, unsure.of(volume))
            more[UNCERTAINTY] = map_path.name
        quality = quality_of(tally, list(info.labels), info.quality)
        more["quality"] = quality.as_json()
        if quality.is_low:
            warnings.append(f"{quality.sentence}.")
        labelled = LabelledScan(label_map, info.labels, case.channels[0], self.weights.sha256)
        self.predictions.writing(path.name)
        self.writer.write(path, labelled)
        crc32 = checksum(path.read_bytes())
        labels = self.writer.values(info.labels)
        return CaseResult(source, path.name, labels, labelled.volume_ml, crc32, warnings, more)

    def _probabilities(self, path: Path) -> Path:
        """The file of probabilities beside a label map."""
        return path.with_name(path.name.removesuffix(self.writer.suffix) + SUFFIX)


def label_map_paths(
    cases: Iterable[str], output_dir: Path, suffix: str = NiftiWriter.suffix
) -> dict[str, Path]:
    """Return the file of each case's label map, in the folder itself and each another, whatever the names.

    Names come from lists and headers, too. Two that would have one file, as a folder that takes small letters
    for capital ones makes of ``a`` and ``A``, get numbers.
    """
    same_letters = is_case_insensitive(output_dir)
    paths: dict[str, Path] = {}
    taken: set[str] = set()
    for case in cases:
        for number in count(1):
            name = file_name(f"{case}-{number}" if number > 1 else case)
            key = unicodedata.normalize("NFC", name).casefold() if same_letters else name
            if key not in taken:
                break
        taken.add(key)
        paths[case] = output_dir / f"{name}{suffix}"
    return paths


def uncertainty_paths(paths: Mapping[str, Path], suffix: str) -> dict[str, Path]:
    """Return the file of each case's map of uncertainty, beside its label map.

    Raises:
        ConfigError: it would be that of another case's label map.
    """
    found = {
        case: path.with_name(f"{path.name.removesuffix(suffix)}_{UNCERTAINTY}.nii.gz")
        for case, path in paths.items()
    }
    if both := set(found.values()) & set(paths.values()):
        raise ConfigError(f"{min(both)} would be a label map and a map of uncertainty: rename the scan.")
    return found


def is_case_insensitive(folder: Path) -> bool:
    """Whether capital and small letters are the same in names of files."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    other = Path(str(there).swapcase())
    return other != there and other.exists() and other.samefile(there)


def refuse_overwriting(cases: Sequence[Case], paths: Mapping[str, Path]) -> None:
    """Refuse an output folder in which a label map would take the place of a scan."""
    scans = {channel.path.resolve() for case in cases for channel in case.channels}
    for case, path in paths.items():
        if path.resolve() in scans:
            raise ConfigError(
                f"The label map of {case} would overwrite the scan {path}: choose another folder."
            )


def is_smaller_than_window(volume: Volume, spec: PredictionSpec) -> bool:
    """Whether a scan, resampled for the network, is shorter than a window along an axis."""
    upright = canonical(volume)
    sides = zip(upright.shape, upright.spacing, spec.spacing or upright.spacing, strict=True)
    return any(
        round(side * spacing / target) < wanted
        for (side, spacing, target), wanted in zip(sides, spec.patch_size, strict=True)
    )
