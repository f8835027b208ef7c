"""Label maps as NIfTI on the grid of the scan they belong to."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import REVERSED
from misfm.data.nifti_place import with_place
from misfm.data.writers.base import WRITERS, LabelledScan, Labels, MaskWriter, label_voxels
from misfm.data.writers.names import snap_table
from misfm.errors import DataError
from misfm.files import write_bytes, write_text
from misfm.volume import Volume

TABLE = "labels.txt"


@WRITERS.register("nifti")
class NiftiWriter(MaskWriter):
    """Writes ``CASE.nii.gz``, and the names of the labels once: NIfTI has no place for them."""

    suffix = ".nii.gz"

    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write one label map; see :func:`write_label_map`."""
        write_label_map(path, labelled.label_map)

    def write_shared(self, folder: Path, labels: Labels) -> None:
        """Write ``labels.txt``, which ITK-SNAP reads."""
        write_text(folder / TABLE, snap_table(labels))


def write_label_map(path: str | Path, volume: Volume) -> None:
    """Write a label map as NIfTI with exactly the volume's affine.

    A label map on the grid of a NIfTI scan has its qform, its sform and the codes of both, so that every
    program finds it on the scan, whichever it trusts.

    Args:
        path: a name ending on ``.nii.gz`` or ``.nii``; its folder is made where missing.
        volume: (1, D, H, W) of whole numbers, stored as uint8, or int16 where a label is above 255.

    Raises:
        DataError: labels beyond int16 or negative ones, another file ending, or an unwritable folder.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path} is no name for a label map; end it on .nii.gz.")
    _write_voxels(path, label_voxels(path, volume), volume)


def write_shares(path: Path, volume: Volume) -> None:
    """Write a map of shares, such as probabilities, as NIfTI, float32 with three decimals.

    Args:
        path: a name ending on ``.nii.gz``; its folder is made where missing.
        volume: (1, D, H, W), [0, 1].

    Raises:
        DataError: an unwritable folder.
    """
    _write_voxels(path, volume.data[0].round(3).astype(np.float32), volume)  # small, once compressed


def _write_voxels(path: Path, voxels: NDArray[Any], volume: Volume) -> None:
    """Write (D, H, W) as they are, on the grid of a volume."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), volume.affine[:, REVERSED])
    image.header.set_xyzt_units("mm")
    # Code 1, scanner coordinates, in both, so that every reader finds the same place whichever it trusts.
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    content = _placed(image.to_bytes(), volume)
    if path.name.endswith(".gz"):
        # A fixed time stamp: the same label map is the same file.
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_bytes(path, content)


def _placed(content: bytes, volume: Volume) -> bytes:
    """A NIfTI file with what the header of the volume's own file says of its place, if that is its place."""
    size = nib.Nifti1Header.sizeof_hdr
    header = nib.Nifti1Header(content[:size])
    # Whoever made the volume may have moved it since it was read.
    placed = with_place(header, volume.place) if volume.place else None
    return content if placed is None else placed.binaryblock + content[size:]
