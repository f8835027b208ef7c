"""What tests of scans share: bringing a volume onto another grid, in the plainest way."""

import numpy as np
import pytest

from misfm.volume import Volume


@pytest.fixture
def to_grid():
    """``to_grid(volume, reference)``: the nearest voxel by position, 0 outside of the volume."""

    def place(volume, reference):
        index = np.stack([*np.indices(reference.shape), np.ones(reference.shape)]).reshape(4, -1)
        places = np.linalg.inv(volume.affine) @ reference.affine @ index
        # The tiny shift decides exact halves the same way for every rounding error of the affines.
        nearest = np.floor(places[:3] + 0.5 + 1e-6).astype(int)
        inside = ((nearest >= 0) & (nearest < np.array(volume.shape)[:, None])).all(axis=0)
        data = np.zeros((len(volume.data), index.shape[1]), volume.data.dtype)
        data[:, inside] = volume.data[:, *nearest[:, inside]]
        return Volume(data.reshape(-1, *reference.shape), reference.affine)

    return place
