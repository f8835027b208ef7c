"""Prediction: scans in, label maps on their own grids out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch

from misfm.data.scan import find_scans
from misfm.data.writers import WRITERS
from misfm.data.writers.nifti import NiftiWriter
from misfm.errors import ConfigError
from misfm.files import make_folder
from misfm.inference.account import Account
from misfm.inference.case_work import CaseWork, Elsewhere, Job, PredictionOptions
from misfm.inference.cases import Case, group_channels
from misfm.inference.load import LoadedWeights, load_predictor
from misfm.inference.members import members_of
from misfm.inference.precision import check_precision
from misfm.inference.predictions import UNCERTAINTY, Predictions
from misfm.parallel import Where, pool
from misfm.terminal import logger
from misfm.text import file_name
from misfm.volume import Volume
from misfm.weights.file import installed_versions
from misfm.weights.source import Source


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


def predict(
    weights_or_run: Source | Sequence[Source],
    volume: Volume,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    precision: str = "auto",
) -> Volume:
    """Label one scan.

    Args:
        weights_or_run: a run folder or weights file, fine-tuned on label maps. Several label together, by the
            mean of their class probabilities, and the folder of a cross-validation stands for its folds.
        volume: (C, D, H, W), voxels as in the file.
        overlap: share of a window that its neighbour repeats, [0, 1).
        tta: average over mirrors, along the axes that the weights were trained with mirrors of.
        precision: what networks are computed in; auto: 16 bits where the device is fast at them.

    Returns:
        Label map (1, D, H, W) uint8 on the scan's own grid, with exactly its affine.

    Raises:
        WeightsError: weights that cannot be read, or that were pretrained only.
        ConfigError: weights that differ in how scans are prepared, or in what they label; no such precision.
        DataError: another number of channels than the network takes.
    """
    known = check_precision(precision)
    return load_predictor(weights_or_run, overlap=overlap, tta=tta, precision=known).predict(volume)


def predict_files(
    weights_or_run: Source | Sequence[Source],
    inputs: Sequence[Path],
    output_dir: Path,
    options: PredictionOptions | None = None,
    *,
    where: Where | None = None,
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
        options: how; by default as PredictionOptions() says.
        where: in this process, which reads the next scan and writes the last label map meanwhile, or others.
        progress: called with the number of cases done, the last of them in part, and their total.

    Raises:
        DataError: no scans, or a folder that cannot be made.
        ConfigError: a label map would overwrite a scan, no such format, or as for :func:`predict`.
        WeightsError: as for :func:`predict`.
    """
    options, where = options or PredictionOptions(), where or Where()
    check_precision(options.precision)
    writer = WRITERS.get(options.format)()
    workers, sources = num_workers(where), members_of(weights_or_run)
    is_here = workers <= 1 and where.scheduler is None
    device = None if is_here else torch.device("cpu")
    weights = options.load(sources, device)
    predictions = begin(output_dir, weights, options)
    own = predictions.masks()  # no scans, where the folder of the scans is that of the label maps
    scans = [scan for scan in find_scans(inputs) if scan.path.resolve() not in own]
    cases = group_channels(scans, weights.info.in_channels, weights.info.channel_names)
    paths = label_map_paths([case.name for case in cases], output_dir.absolute(), writer.suffix)
    maps = uncertainty_paths(paths, writer.suffix) if options.uncertainty else {}
    refuse_overwriting(cases, paths)
    make_folder(output_dir)
    predictions.begin()
    jobs = [Job(case, paths[case.name], maps.get(case.name)) for case in cases]
    account = Account(CaseWork(weights, options), predictions, output_dir, progress, len(cases))
    writer.write_shared(output_dir, weights.info.labels)
    if is_here:
        account.label_here(jobs)
    else:
        how = Elsewhere.of(sources, weights, options, workers if where.scheduler is None else 0)
        with pool(workers, where.scheduler) as workplace:
            account.label_elsewhere(jobs, workplace, how)
    if account.num_found:
        logger.info(
            "%d label map(s) were there already, of the same scans by the same weights.", account.num_found
        )
    return Prediction(account.written, account.failed, account.warnings)


def begin(output_dir: Path, weights: LoadedWeights, options: PredictionOptions) -> Predictions:
    """Return the account of a folder of label maps, before it is begun."""
    made_with = {"misfm": installed_versions()["misfm"], **asdict(options)}
    del made_with["force"]  # which changes no label map
    return Predictions(output_dir, weights.sha256, made_with)


def num_workers(where: Where) -> int:
    """Return how many processes of this machine label; up to 1 is this one.

    Raises:
        ConfigError: more GPUs than there are, or as :meth:`misfm.parallel.Where.num_workers`.
    """
    return where.num_workers(torch.cuda.device_count() if where.devices is not None else 0)


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
