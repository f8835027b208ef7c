"""NRRD and MetaImage, with their voxels behind the header or in a file beside it; read by SimpleITK."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from misfm.data.checks import LPS_TO_RAS, REVERSED, check_shape, make_volume
from misfm.data.quiet import Quiet, Undo
from misfm.data.readers.base import READERS, Reader
from misfm.errors import DataError
from misfm.volume import Affine, Volume

_DATA_FILE = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)


def _silence() -> Undo:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return lambda: sitk.ProcessObject.SetGlobalWarningDisplay(before)


class ItkReader(Reader):
    """Reads what SimpleITK reads; the formats differ in their names only."""

    @Quiet(_silence)
    def read(self, path: Path) -> Volume:
        """Read one file."""
        reader = _open(path)
        w, h, d = check_shape(reader.GetSize(), path)
        image = reader.Execute()
        voxels = sitk.GetArrayFromImage(image).reshape(d, h, w)
        dimension = image.GetDimension()
        direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
        affine: Affine = np.eye(4)
        affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
        affine[:3, 3] = image.GetOrigin()[:3]
        return make_volume(voxels, (LPS_TO_RAS @ affine)[:, REVERSED], path)

    def beside(self, path: Path) -> list[Path]:
        """The file that holds the voxels of a detached header, if it is one."""
        if not path.name.lower().endswith((".mhd", ".nhdr")):
            return []
        try:
            with path.open("rb") as file:
                header = os.fsdecode(file.read(1 << 16))
        except OSError:
            return []
        found = _DATA_FILE.search(header)
        return [path.parent / found[1]] if found else []


@READERS.register("nrrd")
class NrrdReader(ItkReader):
    """NRRD files."""

    title = "NRRD"
    suffixes = (".nrrd", ".nhdr")


@READERS.register("metaimage")
class MetaImageReader(ItkReader):
    """MetaImage files."""

    title = "MetaImage"
    suffixes = (".mha", ".mhd")


def _open(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() > 1 or "vector" in pixel or "complex" in pixel:
        raise DataError(f"{path} holds colour or vector voxels; give one 3D file for each channel.")
    return reader
