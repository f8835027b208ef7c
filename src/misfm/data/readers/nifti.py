"""NIfTI, versions 1 and 2, plain or packed with gzip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import check_affine, check_dtype, check_shape, make_volume
from misfm.data.nifti_place import affine_of, place_of
from misfm.data.quiet import quiet_logger
from misfm.data.readers.base import READERS, Reader
from misfm.data.readers.content import Content, open_content
from misfm.volume import Affine, Shape, Volume, empty_volume

_SECOND = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
"""What NIfTI-2 begins with, in either byte order: the length of its header, 540."""


@READERS.register("nifti")
class NiftiReader(Reader):
    """Reads NIfTI; integers that the header scales by whole numbers are integers again."""

    title = "NIfTI"
    suffixes = (".nii", ".nii.gz")

    @quiet_logger("nibabel")
    def read(self, path: Path) -> Volume:
        """Read one file; the sform is trusted before the qform, and its unit is made millimetres."""
        with open_content(path, packed=path.name.lower().endswith(".gz")) as content:
            header, (w, h, d), affine = _checked(content, path)
            dtype = header.get_data_dtype()
            stored = content.read(w * h * d * dtype.itemsize, skip=header.get_data_offset())
        slope, offset = header.get_slope_inter()
        voxels = _scaled(stored.view(dtype).reshape(d, h, w), slope or 1.0, offset or 0.0)
        return make_volume(voxels, affine, path, place_of(header))

    @quiet_logger("nibabel")
    def grid(self, path: Path) -> Volume:
        """Read the header alone."""
        with open_content(path, packed=path.name.lower().endswith(".gz")) as content:
            header, (w, h, d), affine = _checked(content, path)
        return replace(empty_volume((d, h, w), affine), place=place_of(header))


def _checked(content: Content, path: Path) -> tuple[Any, Shape, Affine]:
    """The header, its shape (W, H, D) and the affine of (d, h, w), checked."""
    header = _parse(content.start(nib.Nifti2Header.sizeof_hdr))
    check_dtype(header.get_data_dtype(), path)
    shape = check_shape(header.get_data_shape(), path)
    return header, shape, check_affine(affine_of(header), path)


def _parse(start: bytes) -> Any:
    kind = nib.Nifti2Header if start[:4] in _SECOND else nib.Nifti1Header
    return kind(start[: kind.sizeof_hdr])


def _scaled(voxels: NDArray[Any], slope: float, offset: float) -> NDArray[Any]:
    """Voxels as the header scales them, one slice at a time; CT stored unsigned becomes int16 again."""
    if (slope, offset) == (1.0, 0.0):
        return voxels
    ends = [float(end) * slope + offset for end in (voxels.min(), voxels.max())]
    limits = np.iinfo(np.int16)
    is_whole = voxels.dtype.kind in "iu" and float(slope).is_integer() and float(offset).is_integer()
    is_small = is_whole and min(ends) >= limits.min and max(ends) <= limits.max
    scaled = np.empty(voxels.shape, np.int16 if is_small else np.float32)
    for before, after in zip(voxels, scaled, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            after[...] = before.astype(np.float64) * slope + offset
    return scaled
