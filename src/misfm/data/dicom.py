"""DICOM: files to series, and one series to a Volume, slices ordered by where they lie in the patient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from misfm.data.checks import (
    LPS_TO_RAS,
    MAX_SHEAR,
    check_shape,
    check_spacing,
    make_volume,
    readable,
)
from misfm.data.dicom_pixels import read_header, read_pixels
from misfm.data.quiet import quiet_logger
from misfm.data.readers.base import Series
from misfm.errors import DataError
from misfm.volume import Affine, Volume

_TAGS = [
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SamplesPerPixel",
]
_GEOMETRY = {
    "Rows": 1,
    "Columns": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
}
"""What says where the pixels of a slice lie, and how many numbers each tag holds."""
_UNEVEN = 0.02
"""Gaps between slices may differ by this part of the usual gap: header numbers are rounded decimals."""

_quiet = quiet_logger("pydicom")


class DicomSeries(Series):
    """The files of one DICOM series; its modality is a hint, for some exporters write CT for anything."""

    def read(self) -> Volume:
        """Read the series; see :func:`read_series`."""
        return read_series(self)


@dataclass(frozen=True)
class _Slice:
    """One image of a series: LPS millimetres of its first pixel and its distance along the normal."""

    file: Path
    header: Any
    position: NDArray[np.float64]
    distance: float


def is_dicom(path: Path) -> bool:
    """Whether a file carries the DICOM mark; names and extensions mean nothing in DICOM."""
    try:
        if not path.is_file():  # a pipe would have to be waited for
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@_quiet
def list_series(files: Iterable[Path]) -> tuple[list[Series], list[Path]]:
    """Group DICOM images by SeriesInstanceUID; other objects (reports, plans) are left out.

    Returns:
        The series, ordered by their first file, and the files whose header cannot be read.
    """
    damaged = []
    members: dict[str, list[Path]] = {}
    modalities: dict[str, str | None] = {}
    owners: dict[str, tuple[str, str]] = {}
    for file in sorted(files):
        try:
            with readable(file):  # pydicom parses a value when it is asked for
                header = read_header(file, _TAGS)
                uid, modality = _uid(file, header), header.get("Modality")
                owner = str(header.get("StudyInstanceUID") or ""), str(header.get("PatientID") or "")
        except DataError:
            damaged.append(file)
            continue
        if "Rows" in header:
            members.setdefault(uid, []).append(file)
            # Several values at once are no hint.
            modalities.setdefault(uid, modality if isinstance(modality, str) else None)
            owners.setdefault(uid, owner)
    return [
        DicomSeries(uid, tuple(paths), modalities[uid], *owners[uid]) for uid, paths in members.items()
    ], damaged


@_quiet
def series_at(path: Path) -> Series:
    """Return the series of a directory that holds one, or the series that one file belongs to.

    Raises:
        DataError: no series there, or several in a directory.
    """
    folder = path if path.is_dir() else path.parent
    files = [file for file in folder.iterdir() if file.is_file() and is_dicom(file)]
    series, damaged = list_series(files)
    if damaged:
        read_header(damaged[0], _TAGS)
    if not path.is_dir():
        series = [one for one in series if path in one.files]
    if not series:
        raise DataError(
            f"{path} holds no DICOM image series; give a scan or a folder with the slices of one."
        )
    if len(series) > 1:
        examples = ", ".join(one.files[0].name for one in series[:4])
        raise DataError(
            f"{path} holds {len(series)} DICOM series; give one file of the wanted one ({examples})."
        )
    return series[0]


@_quiet
def read_series(series: Series) -> Volume:
    """Read a series; slices of a tilted gantry are moved within their planes onto an orthogonal grid.

    Returns:
        Volume (1, D, H, W), D along the normal of the slices, in units after rescale slope and intercept.

    Raises:
        DataError: a damaged or colour file, slices of different size or orientation, two slices in one place,
            an uneven distance between slices, a single slice, a multi-frame file.
    """
    folder = series.files[0].parent
    slices, gap = _stack(series)
    row, column = _directions(slices[0].header, slices[0].file)
    height, width = (float(value) for value in slices[0].header.PixelSpacing)
    check_spacing((gap, height, width), folder)
    voxels = np.stack([read_pixels(one.file) for one in slices])
    normal = np.cross(row, column)
    origin = slices[0].position
    # How far each slice is displaced within its plane against a stack along the normal, in pixels.
    shifts = np.array(
        [[(s.position - origin) @ column / height, (s.position - origin) @ row / width] for s in slices]
    )
    tilt = np.linalg.norm(shifts[-1] * (height, width)) / (gap * (len(slices) - 1))
    if tilt > MAX_SHEAR:
        start, size = _wider(voxels.shape, shifts)
        check_shape((len(voxels), *size), folder)
        voxels = _straighten(voxels, shifts, start, size)
        origin = origin + start[0] * height * column + start[1] * width * row
    affine: Affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * gap, column * height, row * width], axis=1)
    affine[:3, 3] = origin
    return make_volume(voxels, LPS_TO_RAS @ affine, folder)


def _uid(file: Path, header: Any) -> str:
    # Where an anonymiser emptied the identifier, the files of one folder are taken as one series.
    return str(header.get("SeriesInstanceUID") or f"files of {file.parent}")


def _stack(series: Series) -> tuple[list[_Slice], float]:
    """Slices in order along their normal, and the distance between them in millimetres."""
    folder = series.files[0].parent
    headers: dict[tuple[Any, ...], tuple[Path, Any]] = {}
    for file in series.files:
        header = read_header(file, _TAGS)
        _check_slice(file, header)
        # The same image stored twice under two names is one slice.
        identity = (header.get("SOPInstanceUID") or file, *header.ImagePositionPatient)
        headers.setdefault(identity, (file, header))
    first_file, first = next(iter(headers.values()))
    row, column = _directions(first, first_file)
    for file, header in headers.values():
        same_size = (header.Rows, header.Columns) == (first.Rows, first.Columns)
        same_spacing = np.allclose(header.PixelSpacing, first.PixelSpacing, rtol=1e-3)
        if (
            not same_size
            or not same_spacing
            or not np.allclose(_directions(header, file), (row, column), atol=1e-3)
        ):
            raise DataError(
                f"{file} differs in size, pixel spacing or orientation from {first_file.name} of the same "
                "series; move slices that do not belong together into folders of their own."
            )
    normal = np.cross(row, column)
    slices = []
    for file, header in headers.values():
        position = np.array([float(value) for value in header.ImagePositionPatient])
        slices.append(_Slice(file, header, position, float(position @ normal)))
    slices.sort(key=lambda one: one.distance)
    check_shape((len(slices), first.Rows, first.Columns), folder)
    return slices, _usual_gap(slices)


def _check_slice(file: Path, header: Any) -> None:
    with readable(file):
        frames, samples = (int(header.get(tag) or 1) for tag in ("NumberOfFrames", "SamplesPerPixel"))
    if frames > 1:
        raise DataError(
            f"{file} is a multi-frame DICOM file; convert it to NIfTI first, for example with dcm2niix."
        )
    if samples > 1:
        raise DataError(
            f"{file} holds colour (RGB) voxels; only scans with one real number a voxel can be used."
        )
    for tag, count in _GEOMETRY.items():
        with readable(file):
            values = np.array(header.get(tag), dtype=float).ravel()  # a missing tag is one NaN
        if len(values) != count or not np.isfinite(values).all():
            raise DataError(f"{file} is no slice of a 3D scan: its {tag} is missing or damaged.")


def _directions(header: Any, file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors (LPS) along a row of pixels and down a column."""
    cosines = np.array([float(value) for value in header.ImageOrientationPatient])
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) == 0:
        raise DataError(f"{file} has a singular ImageOrientationPatient; repair its header.")
    return row / lengths[0], column / lengths[1]


def _usual_gap(slices: list[_Slice]) -> float:
    gaps = np.diff([one.distance for one in slices])
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    between = f"{slices[worst].file} and {slices[worst + 1].file.name}"
    if gaps.min() < 1e-3:
        at = int(gaps.argmin())
        raise DataError(
            f"{slices[at].file} and {slices[at + 1].file.name} lie in the same place; split the series into "
            "one folder for each time point."
        )
    if abs(gaps[worst] - usual) > _UNEVEN * usual:
        raise DataError(
            f"{between} are {gaps[worst]:.2f} mm apart where {usual:.2f} mm is usual in the series; add the "
            "missing slices or resample it to even spacing."
        )
    return float(gaps.mean())


def _wider(
    shape: tuple[int, ...], shifts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """The first pixel along H and W, and their number, of a grid wide enough for all shifted slices."""
    start = np.floor(shifts.min(axis=0))
    extra = np.ceil(shifts.max(axis=0)) - start
    return start, (int(shape[1] + extra[0]), int(shape[2] + extra[1]))


def _straighten(
    voxels: NDArray[Any], shifts: NDArray[np.float64], start: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[Any]:
    """Move every slice by its shift (pixels along H and W) onto a common grid, padded with the lowest."""
    lowest = voxels.min()
    straight = np.full((len(voxels), *size), lowest, dtype=voxels.dtype)
    for before, after, shift in zip(voxels, straight, shifts, strict=True):
        moved = ndimage.affine_transform(
            before.astype(np.float64), np.eye(2), start - shift, size, order=1, cval=float(lowest)
        )
        after[...] = np.rint(moved) if voxels.dtype.kind in "iu" else moved
    return straight
