"""What every scan must satisfy, whatever file it came from; each fault is one sentence naming the file."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.errors import DataError, MisfmError
from misfm.memory import available_bytes, in_gib, is_out_of_memory
from misfm.text import one_line
from misfm.volume import Affine, FloatTriple, NiftiPlace, Shape, Volume, triple

MAX_SHEAR = 0.01
"""Largest cosine between two axes of a grid that still counts as rounding of the header (0.6 degrees)."""
MIN_SPACING, MAX_SPACING = 0.01, 100.0
"""Millimetres between the voxels of scans of people, and a good deal to either side.

Dental CT and CT of bone in high resolution reach down to 0.06 mm, planning images up to 50 mm. Micrometres or
metres taken for millimetres lie outside.
"""
MAX_SIDE = 2**15 - 1
"""Voxels along an axis: places of voxels are kept in 16 bits."""
WORKING_BYTES = 12
"""Memory a voxel takes at least while a scan is prepared, whatever type it is kept in."""

_LONGEST_REASON = 200
"""Characters of what a library says; some repeat what the file holds."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
REVERSED = [2, 1, 0, 3]
"""Columns of an affine for axes in the reverse order: files name x first, volumes D."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever a library raises about ``path`` into a DataError."""
    try:
        yield
    except MisfmError:
        raise
    except PermissionError as error:
        raise DataError(f"{path} may not be read; change its permissions.") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise too_large(path) from error
        raise DataError(
            f"{path} cannot be read ({_reason(error)}); copy or export the file again."
        ) from error


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn whatever is raised while one scan is worked on into a DataError that names it.

    A scan never stops those after it, whatever is odd about it. That may be a mistake of misfm as well, so
    the sentence keeps type and place of what was raised.
    """
    try:
        yield
    except MisfmError as error:
        if one_line(path.name) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise too_large(path) from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"{path} was read and cannot be used ({type(error).__name__}: {_reason(error)}, raised in "
            f"{Path(place.filename).name}:{place.lineno}); check its header, and report it if the scan is "
            "sound."
        ) from error


def too_large(path: Path) -> DataError:
    """Say that there was not enough memory for a scan; nothing is wrong with the file."""
    return DataError(
        f"{path} does not fit into memory ({in_gib(available_bytes())} are free); use a machine with more, "
        "fewer workers, or a coarser spacing."
    )


def check_memory(shape: Sequence[int], bytes_per_voxel: float, path: Path) -> None:
    """Raise a DataError if voxels would not fit into what memory is free, before any is taken."""
    needed, free = float(np.prod([float(side) for side in shape])) * bytes_per_voxel, available_bytes()
    if needed > free:
        raise DataError(
            f"{path} has {_times(shape)} voxels by its header, which need {in_gib(needed)} of memory where "
            f"{in_gib(free)} are free; correct the header, or use a machine with more."
        )


def check_regular(path: Path) -> None:
    """Raise a DataError for a pipe, socket or device, which may never end, and for a file that is missing."""
    if path.is_file():
        return
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path.")
    what = "a folder" if path.is_dir() else "a pipe, socket or device"
    raise DataError(f"{path} is {what}, no file; give the file of a scan.")


def check_shape(shape: Sequence[int], path: Path) -> Shape:
    """Return the three sides of a scan; trailing axes of length 1 behind the third are dropped.

    Raises:
        DataError: no voxels, a 2D or 4D image, or more voxels than places are counted for or memory is free.
    """
    sides = [int(side) for side in shape]
    if min(sides, default=0) <= 0:
        raise DataError(f"{path} has no voxels: its shape is {_times(sides)}; export the scan again.")
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) > 3:
        raise DataError(
            f"{path} is a {len(sides)}D image of shape {_times(sides)}; give one 3D file for each time point "
            "or channel ('misfm convert' divides those of the Medical Segmentation Decathlon)."
        )
    if len(sides) < 3 or 1 in sides:
        raise DataError(f"{path} is a 2D image of shape {_times(sides)}; only 3D scans can be used.")
    if max(sides) > MAX_SIDE:
        raise DataError(
            f"{path} has {_times(sides)} voxels by its header; scans of up to {MAX_SIDE} along an axis can "
            "be used: correct the header, or cut the scan."
        )
    check_memory(sides, WORKING_BYTES, path)
    return triple(sides)


def check_affine(affine: Affine, path: Path) -> Affine:
    """Return the affine (4, 4) if it describes a grid of orthogonal axes, as spaced as those of scans.

    Raises:
        DataError: numbers that are not finite, a singular or a shearing matrix, or a spacing beyond
            ``MIN_SPACING`` or ``MAX_SPACING``.
    """
    if not np.isfinite(affine).all():
        raise DataError(f"{path} has an affine with NaN or infinite numbers; repair its header.")
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise DataError(f"{path} has a singular affine: an axis has no length; repair its header.")
    check_spacing(triple(float(value) for value in spacing), path)
    cosines = affine[:3, :3] / spacing
    if abs(np.linalg.det(cosines)) < 1e-3:
        raise DataError(f"{path} has a singular affine: its axes lie in one plane; repair its header.")
    shear = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if shear > MAX_SHEAR:
        degrees = 90 - np.degrees(np.arccos(shear))
        raise DataError(
            f"{path} has a shearing affine: its axes are {degrees:.1f} degrees off a right angle; "
            "resample it to an orthogonal grid first."
        )
    return affine


def check_spacing(spacing: FloatTriple, path: Path) -> None:
    """Raise a DataError for a spacing in millimetres that no scan has, as headers in other units give it."""
    for value in spacing:
        if not MIN_SPACING <= value <= MAX_SPACING:
            raise DataError(
                f"{path} has a spacing of {value:.3g} mm by its header, and scans have {MIN_SPACING:g} to "
                f"{MAX_SPACING:g} mm; correct the spacing, or its unit, which may be another."
            )


def check_dtype(dtype: np.dtype[Any], path: Path) -> None:
    """Raise a DataError unless voxels are plain integers or real numbers."""
    if dtype.kind not in "biuf":
        what = "colour (RGB)" if dtype.kind == "V" else f"{dtype.name}"
        raise DataError(f"{path} holds {what} voxels; only scans with one real number a voxel can be used.")


def compact(voxels: NDArray[Any]) -> NDArray[Any]:
    """Return voxels in the smallest of uint8, int16 and float32 that keeps them, uint8 only if they were."""
    if voxels.dtype.kind == "b" or voxels.dtype == np.uint8:
        return voxels.astype(np.uint8, copy=False)
    if voxels.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if voxels.min() >= limits.min and voxels.max() <= limits.max:
            return voxels.astype(np.int16, copy=False)
    return voxels.astype(np.float32, copy=False)


def make_volume(voxels: NDArray[Any], affine: Affine, path: Path, place: NiftiPlace | None = None) -> Volume:
    """Check voxels (D, H, W) and affine and join them.

    Raises:
        DataError: voxels that are not finite, or an affine that ``check_affine`` refuses.
    """
    check_affine(affine, path)
    # One NaN makes both extremes NaN, so two passes without a mask in memory tell whether all are finite.
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(voxels.min()) and np.isfinite(voxels.max())
    if not finite:
        raise DataError(f"{path} has NaN or infinite voxels; replace them by the value of air or background.")
    with np.errstate(over="ignore"):
        data = compact(voxels)
    if not np.isfinite(data.max()):
        raise DataError(f"{path} has voxels beyond the range of float32; rescale its intensities.")
    return Volume(np.ascontiguousarray(data)[None], np.asarray(affine, dtype=np.float64), place)


def _times(sides: Sequence[int]) -> str:
    return " x ".join(str(side) for side in sides)


def _reason(error: Exception) -> str:
    """The last line of what was raised, where libraries say what it comes to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:_LONGEST_REASON]
