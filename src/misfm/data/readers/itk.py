"""NRRD and MetaImage, with their voxels behind the header or in a file beside it; read by SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from misfm.data.checks import LPS_TO_RAS, REVERSED, check_affine, check_shape, make_volume
from misfm.data.quiet import quiet_itk
from misfm.data.readers.base import READERS, Reader
from misfm.data.readers.content import open_content
from misfm.data.readers.itk_header import Voxels, find_voxels
from misfm.errors import DataError
from misfm.text import path_text
from misfm.volume import Affine, Volume

_TYPES = {
    sitk.sitkUInt8: "u1",
    sitk.sitkInt8: "i1",
    sitk.sitkUInt16: "u2",
    sitk.sitkInt16: "i2",
    sitk.sitkUInt32: "u4",
    sitk.sitkInt32: "i4",
    sitk.sitkUInt64: "u8",
    sitk.sitkInt64: "i8",
    sitk.sitkFloat32: "f4",
    sitk.sitkFloat64: "f8",
}
_DENSEST = 1000
"""Voxels that a byte stands for at the most where they are written in text or packed otherwise."""


class ItkReader(Reader):
    """Reads what SimpleITK reads; the formats differ in their names only.

    ITK tells what the header says; voxels that are bytes are read without it, for it takes memory for what a
    header promises and prints of damaged files to the terminal.
    """

    detached: ClassVar[str]
    """The suffix of headers with their voxels in a file beside them."""

    @quiet_itk
    def read(self, path: Path) -> Volume:
        """Read one file."""
        voxels = find_voxels(path)
        reader = self._open(path, voxels.image_io)
        w, h, d = check_shape(reader.GetSize(), path)
        dimension = reader.GetDimension()
        direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
        affine: Affine = np.eye(4)
        affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
        affine[:3, 3] = reader.GetOrigin()[:3]
        check_affine(affine, path)
        data = _read(reader, voxels, d * h * w, path).reshape(d, h, w)
        return make_volume(data, (LPS_TO_RAS @ affine)[:, REVERSED], path)

    def beside(self, path: Path) -> list[Path]:
        """The file that holds the voxels of a detached header, if it is one."""
        if not path.name.lower().endswith(self.detached):
            return []
        try:
            file = find_voxels(path).file
        except (OSError, DataError):  # said when it is read
            return []
        return [] if file == path else [file]

    def _open(self, path: Path, image_io: str) -> sitk.ImageFileReader:
        if path_text(path) != str(path):
            raise DataError(
                f"{path} has a name that is no UTF-8, with which {self.title} is not read; rename it."
            )
        reader = sitk.ImageFileReader()
        reader.SetImageIO(image_io)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if reader.GetNumberOfComponents() > 1 and path.name.lower().endswith(".seg.nrrd"):
            raise DataError(
                f"{path} holds segments that overlap, in several layers; give a label map of one layer, as "
                "predict writes it with --format nifti."
            )
        if reader.GetNumberOfComponents() > 1 or "vector" in pixel or "complex" in pixel:
            raise DataError(f"{path} holds colour or vector voxels; give one 3D file for each channel.")
        return reader


def _read(reader: sitk.ImageFileReader, voxels: Voxels, count: int, path: Path) -> NDArray[Any]:
    """Voxels, slowest axis first."""
    dtype = np.dtype(_TYPES[reader.GetPixelID()]).newbyteorder(">" if voxels.big_endian else "<")
    if voxels.plain:
        with open_content(voxels.file, start=voxels.start, packed=voxels.packed) as content:
            return content.read(count * dtype.itemsize).view(dtype)
    held = voxels.file.stat().st_size
    if count > _DENSEST * held:
        raise DataError(f"{path} promises {count} voxels in a file of {held} bytes; export it again.")
    array: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return array


@READERS.register("nrrd")
class NrrdReader(ItkReader):
    """NRRD files."""

    title = "NRRD"
    suffixes = (".nrrd", ".seg.nrrd", ".nhdr")
    detached = ".nhdr"


@READERS.register("metaimage")
class MetaImageReader(ItkReader):
    """MetaImage files."""

    title = "MetaImage"
    suffixes = (".mha", ".mhd")
    detached = ".mhd"
