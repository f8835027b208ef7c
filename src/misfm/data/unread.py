"""Files that look like scans and are of formats that misfm does not read: their users are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from misfm.text import one_line

ENDINGS = (
    *(".mgz", ".mgh", ".img", ".img.gz", ".hdr", ".mnc", ".mnc.gz", ".par", ".rec", ".gipl", ".gipl.gz"),
    *(".vti", ".vtk", ".ecat", ".ima", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".dcm.gz", ".npy"),
    *(".npz", ".tif", ".tiff", ".nrrd.gz", ".mha.gz", ".mhd.gz"),
)
"""FreeSurfer, Analyze and NIfTI pairs, MINC, Philips, GIPL, VTK, ECAT, arrays, and other packers."""
_HEADERS = (".hdr", ".par")
"""Of pairs, whose other half counts."""
_NAMED = 5
"""Files that a message names."""


def looks_like_a_scan(path: Path) -> bool:
    """Whether a file that no reader takes bears the name of a scan; of pairs the voxels' file does."""
    ending = _ending(path)
    if ending not in _HEADERS:
        return bool(ending)
    return not any(path.with_suffix(half).exists() for half in (".img", ".img.gz", ".rec", ".IMG", ".REC"))


def told(files: Sequence[Path], *, by_name: bool = True) -> str:
    """Return a clause on files that were passed over: how many, of what kind, and the first of them by name.

    Args:
        files: at least one.
        by_name: whether they may be named, which says whose they are.
    """
    kinds = Counter(_ending(file) for file in files)
    counted = ", ".join(f"{count} {ending}" for ending, count in sorted(kinds.items()))
    names = [one_line(file.name) for file in files[:_NAMED]]
    more = ", ..." if len(files) > _NAMED else ""
    return f"{counted}: {', '.join(names)}{more}" if by_name else counted


def _ending(path: Path) -> str:
    name = path.name.lower()
    return max((ending for ending in ENDINGS if name.endswith(ending)), key=len, default="")
