"""Telling a scan by its voxels, whatever file it lies in."""

from __future__ import annotations

import hashlib

import numpy as np

from misfm.volume import Volume

SCHEME = "v2:"
"""What fingerprints begin with, to be told from earlier ones, which depended on type and axes."""


def fingerprint(volume: Volume) -> str:
    """Hash of the voxels that stays the same however a scan is stored.

    That is, under another name, with axes in another order or direction, with another header or type of
    voxels, as long as their values are equal: DICOM, and the NIfTI file that was made from it.

    What is hashed are the sums of the voxels' bits over each slice, along all axes: exact, and of one order
    whichever way the axes run.
    """
    digest = hashlib.sha256()
    for channel in volume.data:
        # 0 is added to make one of the two zeros of floats.
        bits = (np.ascontiguousarray(channel, dtype=np.float32) + np.float32(0)).view(np.uint32)
        sums = [bits.sum(axis=axes, dtype=np.uint64).tolist() for axes in ((1, 2), (0, 2), (0, 1))]
        digest.update(repr(sorted(min(along, along[::-1]) for along in sums)).encode())
    return SCHEME + digest.hexdigest()


def short_fingerprint(text: str) -> str:
    """The first 16 characters of a fingerprint, 52 bits: enough to tell the scans of a project apart."""
    return text[:16]
