"""Scans from files: NIfTI, NRRD, MetaImage and DICOM become a Volume on the file's own grid.

Axes (D, H, W) are the file's axes reversed, slowest first, and the affine maps (d, h, w) to RAS millimetres.
Whatever is wrong with a file becomes one DataError that names it.
"""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from misfm.data import dicom
from misfm.data.checks import (
    LPS_TO_RAS,
    check_dtype,
    check_shape,
    make_volume,
    readable,
)
from misfm.errors import DataError
from misfm.volume import Affine, Volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
FILE_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES

_REVERSED = [2, 1, 0, 3]
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}

# Both libraries print their own remarks on odd headers; what matters reaches the user as a DataError.
logging.getLogger("nibabel").setLevel(logging.CRITICAL)
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_volume(path: str | Path) -> Volume:
    """Read one scan.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a directory with one DICOM series, or one file of a series.

    Returns:
        Volume (1, D, H, W) of uint8, int16 or float32 on the file's own grid; int16 stays int16.

    Raises:
        DataError: a file that is missing, damaged or of another kind; a 2D or 4D image; no voxels; NaN or
            infinite voxels; colour voxels; an affine that is singular, shearing or not finite; a DICOM series
            with unevenly spaced slices.
    """
    path = Path(path)
    kind = _kind(path)
    with readable(path):
        if kind == "dicom":
            return dicom.read_series(dicom.series_at(path))
        return _read_nifti(path) if kind == "nifti" else _read_itk(path)


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name ends on one of ``suffixes``, in any case."""
    return path.name.lower().endswith(suffixes)


def stem(path: Path) -> str:
    """The file name without the suffixes of scans: ``case_1.nii.gz`` is ``case_1``."""
    for suffix in sorted(FILE_SUFFIXES, key=len, reverse=True):
        if has_suffix(path, (suffix,)):
            return path.name[: -len(suffix)]
    return path.stem if has_suffix(path, (".dcm",)) else path.name


def _kind(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path.")
    if path.is_dir() or dicom.is_dicom(path):
        return "dicom"
    if has_suffix(path, NIFTI_SUFFIXES):
        return "nifti"
    if has_suffix(path, ITK_SUFFIXES):
        return "itk"
    raise DataError(
        f"{path} is no scan misfm can read; give NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage "
        "(.mha, .mhd) or DICOM."
    )


def _read_nifti(path: Path) -> Volume:
    if has_suffix(path, (".gz",)):
        # Unpacked as a whole, because only the end of a gzip file tells whether all of it arrived unharmed.
        content = gzip.decompress(path.read_bytes())
        # The first four bytes are the header's length, 540 in NIfTI-2 (in either byte order).
        is_second = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
        image = (nib.Nifti2Image if is_second else nib.Nifti1Image).from_bytes(content)
    else:
        image = nib.load(path, mmap=False)
    check_dtype(image.get_data_dtype(), path)
    w, h, d = check_shape(image.shape, path)
    voxels = np.asanyarray(image.dataobj).reshape((w, h, d), order="A")
    unit = image.header.get_xyzt_units()[0]
    affine = np.diag([_MILLIMETRES.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
    voxels = _whole_numbers(voxels, image)
    return make_volume(voxels.transpose(2, 1, 0), affine[:, _REVERSED], path)


def _whole_numbers(voxels: NDArray[Any], image: Any) -> NDArray[Any]:
    """Integers that the header scales by whole numbers (CT stored unsigned) are integers again."""
    slope, offset = image.dataobj.slope, image.dataobj.inter
    stored = image.get_data_dtype().kind in "iu"
    if stored and voxels.dtype.kind == "f" and float(slope).is_integer() and float(offset).is_integer():
        return voxels.astype(np.int64)
    return voxels


def _itk_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() > 1 or "vector" in pixel or "complex" in pixel:
        raise DataError(f"{path} holds colour or vector voxels; give one 3D file for each channel.")
    return reader


def _read_itk(path: Path) -> Volume:
    reader = _itk_reader(path)
    w, h, d = check_shape(reader.GetSize(), path)
    image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image).reshape(d, h, w)
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine: Affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return make_volume(voxels, (LPS_TO_RAS @ affine)[:, _REVERSED], path)
