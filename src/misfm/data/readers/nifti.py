"""NIfTI, versions 1 and 2, plain or packed with gzip."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import REVERSED, check_dtype, check_shape, make_volume
from misfm.data.quiet import quiet_logger
from misfm.data.readers.base import READERS, Reader
from misfm.volume import Volume

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


@READERS.register("nifti")
class NiftiReader(Reader):
    """Reads NIfTI; integers that the header scales by whole numbers are integers again."""

    title = "NIfTI"
    suffixes = (".nii", ".nii.gz")

    @quiet_logger("nibabel")
    def read(self, path: Path) -> Volume:
        """Read one file; the sform is trusted before the qform, and its unit is made millimetres."""
        image = _open(path)
        check_dtype(image.get_data_dtype(), path)
        w, h, d = check_shape(image.shape, path)
        voxels = np.asanyarray(image.dataobj).reshape((w, h, d), order="A")
        unit = image.header.get_xyzt_units()[0]
        affine = np.diag([_MILLIMETRES.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
        voxels = _whole_numbers(voxels, image)
        return make_volume(voxels.transpose(2, 1, 0), affine[:, REVERSED], path)


def _open(path: Path) -> Any:
    if not path.name.lower().endswith(".gz"):
        return nib.load(path, mmap=False)
    # Unpacked as a whole, because only the end of a gzip file tells whether all of it arrived unharmed.
    content = gzip.decompress(path.read_bytes())
    # The first four bytes are the header's length, 540 in NIfTI-2 (in either byte order).
    is_second = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
    return (nib.Nifti2Image if is_second else nib.Nifti1Image).from_bytes(content)


def _whole_numbers(voxels: NDArray[Any], image: Any) -> NDArray[Any]:
    """Integers that the header scales by whole numbers (CT stored unsigned) are integers again."""
    slope, offset = image.dataobj.slope, image.dataobj.inter
    stored = image.get_data_dtype().kind in "iu"
    if stored and voxels.dtype.kind == "f" and float(slope).is_integer() and float(offset).is_integer():
        return voxels.astype(np.int64)
    return voxels
