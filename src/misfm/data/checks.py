"""What every scan must satisfy, whatever file it came from; each fault is one sentence naming the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.errors import DataError, MisfmError
from misfm.volume import Affine, Shape, Volume, triple

MAX_SHEAR = 0.01
"""Largest cosine between two axes of a grid that still counts as rounding of the header (0.6 degrees)."""

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
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[-1] if lines else type(error).__name__).rstrip(".")
        raise DataError(f"{path} cannot be read ({reason}); copy or export the file again.") from error


def check_shape(shape: Sequence[int], path: Path) -> Shape:
    """Return the three sides of a scan; trailing axes of length 1 behind the third are dropped.

    Raises:
        DataError: no voxels, or a 2D or 4D image.
    """
    sides = [int(side) for side in shape]
    if 0 in sides:
        raise DataError(f"{path} has no voxels: its shape is {_times(sides)}; export the scan again.")
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) > 3:
        raise DataError(
            f"{path} is a {len(sides)}D image of shape {_times(sides)}; give one 3D file for each time point "
            "or channel."
        )
    if len(sides) < 3 or 1 in sides:
        raise DataError(f"{path} is a 2D image of shape {_times(sides)}; only 3D scans can be used.")
    return triple(sides)


def check_affine(affine: Affine, path: Path) -> Affine:
    """Return the affine (4, 4) if it describes a grid of orthogonal axes.

    Raises:
        DataError: numbers that are not finite, a singular or a shearing matrix.
    """
    if not np.isfinite(affine).all():
        raise DataError(f"{path} has an affine with NaN or infinite numbers; repair its header.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise DataError(f"{path} has a singular affine: an axis has no length; repair its header.")
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


def make_volume(voxels: NDArray[Any], affine: Affine, path: Path) -> Volume:
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
    return Volume(np.ascontiguousarray(data)[None], np.asarray(affine, dtype=np.float64))


def _times(sides: Sequence[int]) -> str:
    return " x ".join(str(side) for side in sides)
