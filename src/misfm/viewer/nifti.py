"""Volumes as NIfTI in memory: the header is made, the voxels are sent as they lie."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import REVERSED
from misfm.volume import Affine, FloatTriple, Shape, triple

_KEPT = ("uint8", "int16", "uint16", "float32")
"""Types of voxels that go out as they are; others become float32."""
_OFFSET = 352
"""Bytes before the voxels: the header, and four that say that nothing else comes."""


MOST_VOXELS = 48_000_000
"""That a page gets of a scan unless it asks for all: a graphics card needs 14 bytes for each."""
FEW_VOXELS = 8_000_000
"""That a page gets on a machine which draws without a graphics card."""


def strides(shape: Shape, spacing: FloatTriple, most: float = MOST_VOXELS) -> Shape:
    """Return which voxels along (D, H, W) to keep, every one or every second or …, so that ``most`` are left.

    The axis with the smallest spacing is thinned first.
    """
    kept = [1, 1, 1]
    while np.prod([-(-side // step) for side, step in zip(shape, kept, strict=True)]) > most:
        finest = min(range(3), key=lambda axis: spacing[axis] * kept[axis])
        kept[finest] *= 2
    return triple(kept)


def thinned(voxels: NDArray[Any], affine: Affine, kept: Shape) -> tuple[NDArray[Any], Affine]:
    """Return every n-th voxel (D, H, W), and where these lie."""
    d, h, w = kept
    return voxels[::d, ::h, ::w], affine * [d, h, w, 1]


def as_nifti(voxels: NDArray[Any], affine: Affine) -> list[memoryview]:
    """Return the parts of a NIfTI file.

    Args:
        voxels: (D, H, W).
        affine: (4, 4), voxel (d, h, w, 1) to RAS mm.

    Returns:
        Header and voxels, each as bytes; the latter are not copied where their type can stay.
    """
    if voxels.dtype.name not in _KEPT:
        voxels = voxels.astype(np.uint8 if voxels.dtype == np.bool_ else np.float32)
    voxels = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine[:, REVERSED], code=1)
    header.set_qform(affine[:, REVERSED], code=1, strip_shears=True)
    header["vox_offset"], header["magic"] = _OFFSET, b"n+1"
    start = header.binaryblock.ljust(_OFFSET, b"\0")
    return [memoryview(start), voxels.reshape(-1).view(np.uint8).data]
