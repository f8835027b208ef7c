"""Label maps as NIfTI on the grid of the scan they belong to."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from misfm.data.checks import REVERSED
from misfm.data.writers.base import WRITERS, LabelledScan, MaskWriter
from misfm.errors import DataError
from misfm.files import write_bytes
from misfm.volume import Volume


@WRITERS.register("nifti")
class NiftiWriter(MaskWriter):
    """Writes ``CASE.nii.gz``."""

    suffix = ".nii.gz"

    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write one label map; see :func:`write_label_map`."""
        write_label_map(path, labelled.label_map)


def write_label_map(path: str | Path, volume: Volume) -> None:
    """Write a label map as NIfTI with exactly the volume's affine.

    Args:
        path: a name ending on ``.nii.gz`` or ``.nii``; its folder is made where missing.
        volume: (1, D, H, W) of whole numbers, stored as uint8, or int16 where a label is above 255.

    Raises:
        DataError: labels beyond int16 or negative ones, another file ending, or an unwritable folder.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path} is no name for a label map; end it on .nii.gz.")
    labels = volume.data[0]
    if labels.min() < 0 or labels.max() > np.iinfo(np.int16).max:
        raise DataError(f"{path} cannot be written: labels must lie between 0 and {np.iinfo(np.int16).max}.")
    dtype = np.uint8 if labels.max() <= 255 else np.int16
    image = nib.Nifti1Image(labels.astype(dtype).transpose(2, 1, 0), volume.affine[:, REVERSED])
    image.header.set_xyzt_units("mm")
    # Code 1, scanner coordinates, in both, so that every reader finds the same place whichever it trusts.
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        # A fixed time stamp: the same label map is the same file.
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_bytes(path, content)
