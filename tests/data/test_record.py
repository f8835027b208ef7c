"""The fingerprint of a scan: one however it is stored, another for any other scan."""

import numpy as np
import pytest

from misfm.data.fingerprint import fingerprint
from misfm.volume import Volume


@pytest.fixture
def scan():
    voxels = np.random.default_rng(0).integers(-1000, 1000, (1, 4, 5, 6)).astype(np.int16)
    return Volume(voxels, np.eye(4))


def test_the_way_a_scan_is_stored_does_not_matter(scan):
    flipped = np.array([[1, 0, 0, 0], [0, -1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    stored = [
        Volume(scan.data.astype(np.float64), scan.affine),
        Volume(scan.data, np.diag([-2.0, 1, 1, 1])),
        Volume(scan.data[:, :, ::-1], flipped),
        Volume(scan.data.transpose(0, 3, 1, 2)[:, ::-1], scan.affine),
    ]
    assert {fingerprint(one) for one in stored} == {fingerprint(scan)}


def test_other_voxels_in_other_places_do(scan):
    louder, moved = scan.data.copy(), scan.data.copy()
    louder[0, 1, 2, 3] += 1
    moved[0, 1, 2, 3], moved[0, 2, 3, 4] = scan.data[0, 2, 3, 4], scan.data[0, 1, 2, 3]
    others = [louder, moved, scan.data[:, :3], np.concatenate([scan.data, scan.data])]
    prints = {fingerprint(Volume(voxels, scan.affine)) for voxels in (scan.data, *others)}
    assert len(prints) == 5


def test_the_two_zeros_of_floats_are_one():
    zeros = np.array([0.0, -0.0, 1.0]).reshape(1, 1, 1, 3)
    assert fingerprint(Volume(zeros, np.eye(4))) == fingerprint(Volume(np.abs(zeros), np.eye(4)))
