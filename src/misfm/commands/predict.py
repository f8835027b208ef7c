"""Prediction: scans in, label maps on their own grids out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from misfm.data.checks import usable
from misfm.data.dataset import check_grid
from misfm.data.preprocess import canonical
from misfm.data.readers import stem
from misfm.data.scan import ScanSource, find_scans
from misfm.data.writers import write_label_map
from misfm.errors import ConfigError, DataError
from misfm.files import make_folder
from misfm.inference.load import load_predictor
from misfm.inference.predictor import PredictionSpec
from misfm.terminal import logger
from misfm.text import file_name, one_line
from misfm.volume import Volume
from misfm.weights.source import Source


@dataclass(frozen=True)
class Prediction:
    """What became of the scans.

    Attributes:
        written: label map by case.
        failed: reason by case.
    """

    written: Mapping[str, Path]
    failed: Mapping[str, str]


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
    *,
    overlap: float = 0.5,
    tta: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Label scans and write each as ``CASE.nii.gz``; one that cannot be used does not stop the others.

    Where a case has a name that no file can have, the file has one like it (:func:`label_map_paths`).

    Args:
        weights_or_run: as for :func:`predict`.
        inputs: files, DICOM folders or trees of scans. ``CASE_0000``, ``CASE_0001``, … are the channels of
            ``CASE``, as in nnU-Net datasets.
        output_dir: made where missing.
        overlap: share of a window that its neighbour repeats, [0, 1).
        tta: average predictions of mirrored windows, see :func:`load_predictor`.
        progress: called with the number of cases done and their total.

    Raises:
        DataError: no scans, or a folder that cannot be made.
        ConfigError: a label map would overwrite a scan, or as for :func:`predict`.
        WeightsError: as for :func:`predict`.
    """
    predictor = load_predictor(weights_or_run, overlap=overlap, tta=tta)
    cases = group_channels(find_scans(inputs), predictor.spec.in_channels)
    paths = label_map_paths(cases, output_dir)
    refuse_overwriting(cases, paths)
    make_folder(output_dir)
    written: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for case, channels in cases.items():
        try:
            with usable(channels[0].path):
                volume = read_channels(case, channels, predictor.spec.in_channels)
                if is_smaller_than_window(volume, predictor.spec):
                    patch = predictor.spec.patch_size
                    logger.info("%s is smaller than the patch %s: it is padded.", case, patch)
                label_map = predictor.predict(volume)
            write_label_map(paths[case], label_map)
            written[case] = paths[case]
        except DataError as error:
            failed[case] = str(error)
            logger.warning("%s", error)
        if progress is not None:
            progress(len(written) + len(failed), len(cases))
    return Prediction(written, failed)


def label_map_paths(cases: Iterable[str], output_dir: Path) -> dict[str, Path]:
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
        paths[case] = output_dir / f"{name}.nii.gz"
    return paths


def is_case_insensitive(folder: Path) -> bool:
    """Whether capital and small letters are the same in names of files."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    other = Path(str(there).swapcase())
    return other != there and other.exists() and other.samefile(there)


def refuse_overwriting(cases: Mapping[str, Sequence[ScanSource]], paths: Mapping[str, Path]) -> None:
    """Refuse an output folder in which a label map would take the place of a scan."""
    scans = {channel.path.resolve() for channels in cases.values() for channel in channels}
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


def group_channels(scans: Sequence[ScanSource], in_channels: int) -> dict[str, list[ScanSource]]:
    """Collect the channels of each case by its name.

    ``CASE_0000`` alone is ``CASE``, as in nnU-Net datasets; with several channels ``CASE_0000``,
    ``CASE_0001``, … of one folder belong together. Any other name is a case of its own. Cases of one name in
    two folders get numbers behind their names.
    """
    groups: dict[tuple[Path, str], list[ScanSource]] = {}
    for scan in sorted(scans, key=lambda scan: scan.path):
        match = re.fullmatch(r"(.+)_(\d{4})", scan.case)
        if scan.case + "_0000" == one_line(stem(scan.path)):  # a dataset has told the case from the channel
            match = None
        is_channel = match is not None and int(match[2]) < in_channels
        name = match[1] if match is not None and is_channel else scan.case
        groups.setdefault((scan.path.parent, name), []).append(scan)
    cases: dict[str, list[ScanSource]] = {}
    for (_, name), channels in groups.items():
        cases[unused_name(name, cases)] = channels
    return cases


def unused_name(name: str, taken: Mapping[str, object]) -> str:
    """Return a name, with the first free number behind it if it is taken."""
    names = (f"{name}-{number}" if number > 1 else name for number in count(1))
    return next(name for name in names if name not in taken)


def read_channels(case: str, channels: Sequence[ScanSource], in_channels: int) -> Volume:
    """Read a case; all of its channels must be there and share a grid."""
    if len(channels) != in_channels:
        found = ", ".join(str(channel.path) for channel in channels)
        raise DataError(
            f"Case {case} has {len(channels)} channel(s) ({found}) and the network takes {in_channels}; "
            f"name its files {case}_0000, {case}_0001, … and give all of them."
        )
    volumes = [channel.read() for channel in channels]
    for channel, volume in zip(channels[1:], volumes[1:], strict=True):
        check_grid(channel.path, volume, channels[0].path, volumes[0])
    return Volume(np.concatenate([volume.data for volume in volumes]), volumes[0].affine)
