"""What headers of NIfTI say of where voxels lie: read with a scan, and written with its label map."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from misfm.data.checks import REVERSED
from misfm.volume import Affine, NiftiPlace

FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_ROUNDING = 1e-3
"""mm: NIfTI-2 keeps more digits than NIfTI-1."""


def affine_of(header: Any) -> Affine:
    """(4, 4), voxel index (d, h, w, 1) to RAS mm; the sform is trusted before the qform."""
    return _of_reversed(header, header.get_best_affine())


def place_of(header: Any) -> NiftiPlace:
    """Everything that a header says of the place of its voxels."""
    other = None
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        with suppress(ValueError):  # a quaternion that is none
            other = _of_reversed(header, header.get_qform())
    return NiftiPlace({name: np.array(header[name]) for name in FIELDS}, other)


def with_place(header: Any, place: NiftiPlace) -> Any | None:
    """A header with another place, None where that is not where its affine places the voxels."""
    placed = header.copy()
    for name, value in place.fields.items():
        placed[name] = value
    placed["pixdim"][4:] = header["pixdim"][4:]
    moved = np.abs(affine_of(placed) - affine_of(header)).max()
    return placed if moved <= _ROUNDING else None


def _of_reversed(header: Any, affine: Affine) -> Affine:
    unit = header.get_xyzt_units()[0]
    in_millimetres: Affine = np.diag([_MILLIMETRES.get(unit, 1.0)] * 3 + [1.0]) @ affine
    return in_millimetres[:, REVERSED]
