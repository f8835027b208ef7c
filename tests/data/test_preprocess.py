"""A landmark keeps its place in the patient through orientation, cropping and resampling."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from misfm.data.preprocess import canonical, content_box, resample
from misfm.volume import Box, Volume

IDENTITY_SPL = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])


def grid(spacing, origin=(0, 0, 0), rotation=None):
    """Affine of an SPL grid with a spacing along (D, H, W), turned by a rotation matrix."""
    affine = IDENTITY_SPL @ np.diag([*spacing, 1.0])
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ affine[:3, :3]
    affine[:3, 3] = origin
    return affine


def orientations():
    """All 48 ways to order and flip three axes, each as the linear part of an affine."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[list(order), range(3)] = np.array(signs) * (1.5, 2.0, 0.7)
            yield matrix


def positions(volume):
    """World position (3, D, H, W) of every voxel."""
    index = np.stack([*np.indices(volume.shape), np.ones(volume.shape)])
    return np.einsum("ij,jdhw->idhw", volume.affine, index)[:3]


SLOPE = np.array([0.7, -1.3, 2.1])


def ramp(affine, shape):
    """An image whose value is a linear function of the place, which linear interpolation reproduces."""
    empty = Volume(np.zeros((1, *shape)), affine)
    values = np.tensordot(SLOPE, positions(empty), 1)
    return Volume(values[None].astype(np.float32), affine)


@pytest.mark.parametrize("matrix", list(orientations()), ids=lambda m: str(np.sign(m).astype(int).tolist()))
def test_canonical_turns_all_48_orientations_into_one(matrix):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (3, -4, 5)
    volume = ramp(affine, (4, 5, 6))
    out = canonical(volume)
    assert out.orientation == "SPL"
    assert sorted(out.data.ravel()) == sorted(volume.data.ravel())
    assert np.allclose(out.data, ramp(out.affine, out.shape).data, atol=1e-4)
    assert out.data.flags.c_contiguous


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_oblique_grids_keep_their_angles_and_places(seed):
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    affine = grid(generator.uniform(0.5, 4, 3), generator.uniform(-90, 90, 3), rotation)
    volume = ramp(affine, tuple(generator.integers(4, 12, 3)))
    out = canonical(volume)
    assert out.orientation == "SPL"
    assert np.allclose(out.data, ramp(out.affine, out.shape).data, atol=1e-3)
    assert np.array_equal(canonical(out).data, out.data)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_resampling_keeps_places_and_the_field_of_view(seed):
    generator = np.random.default_rng(seed)
    old, new = generator.uniform(1.0, 2.5, 3), generator.uniform(0.7, 4, 3)
    affine = grid(old, generator.uniform(-90, 90, 3), Rotation.random(random_state=seed).as_matrix())
    volume = ramp(affine, tuple(generator.integers(16, 24, 3)))
    out = resample(volume, new)
    assert out.spacing == pytest.approx(tuple(new), rel=2e-3)
    assert np.array(out.shape) * out.spacing == pytest.approx(
        np.array(volume.shape) * old, abs=max(new) / 2 + 0.1
    )
    centre = [(side - 1) / 2 for side in volume.shape] + [1]
    centre_after = [(side - 1) / 2 for side in out.shape] + [1]
    assert out.affine @ centre_after == pytest.approx(volume.affine @ centre, abs=1e-6)
    # Away from the border, where the kernel sees less than it would like to.
    inner = (slice(None), *(slice(side // 3, side - side // 3) for side in out.shape))
    # A stretched kernel, sampled at whole voxels, is off by at most 0.086 of them along an axis.
    most = 0.09 * np.abs(SLOPE @ volume.affine[:3, :3]).sum()
    assert np.allclose(out.data[inner], ramp(out.affine, out.shape).data[inner], atol=most)


def test_native_spacing_changes_nothing():
    volume = ramp(grid((3, 1, 1)), (4, 5, 6))
    assert resample(volume, "native") is volume
    assert resample(volume, (None, None, None)) is volume
    assert resample(volume, (3, 1, 1)) is volume
    assert resample(volume, (None, 2.0, None)).spacing == (3, 2, 1)


def test_linear_interpolation_by_hand():
    volume = Volume(np.array([0, 10, 30, 20], np.int16).reshape(1, 1, 1, 4), grid((1, 1, 2)))
    assert resample(volume, (1, 1, 1)).data.ravel() == pytest.approx([0, 2.5, 7.5, 15, 25, 27.5, 22.5, 20])


def test_shrinking_skips_no_voxel():
    data = np.zeros((1, 12, 12, 12), np.float32)
    data[0, 5, 6, 7] = 64
    out = resample(Volume(data, grid((1, 1, 1))), (4, 4, 4))
    # The mean survives: a voxel between two samples is not lost.
    assert out.data.mean() == pytest.approx(data.mean(), rel=0.35)
    assert resample(Volume(np.ones_like(data), grid((1, 1, 1))), (3.3, 2, 5)).data == pytest.approx(1)


def test_thick_slices_are_not_interpolated():
    volume = ramp(grid((8, 1, 1)), (4, 6, 6))
    out = resample(volume, (2, 1, 1))
    assert out.shape == (16, 6, 6)
    assert np.array_equal(out.data[0], np.repeat(volume.data[0], 4, axis=0))
    label = Volume((volume.data > volume.data.mean()).astype(np.uint8), volume.affine)
    assert np.array_equal(resample(label, (2, 1, 1), label=True).data[0], np.repeat(label.data[0], 4, axis=0))


def brute_force_labels(labels, shape):
    """Each label interpolated on the whole grid, the largest share wins; spacing halves along every axis."""
    coordinates = np.meshgrid(*((np.arange(n) + 0.5) / 2 - 0.5 for n in shape), indexing="ij")
    values = np.unique(labels)
    shares = [
        ndimage.map_coordinates((labels == v).astype(float), coordinates, order=1, mode="nearest")
        for v in values
    ]
    return values[np.argmax(shares, axis=0)], np.sort(shares, axis=0)


def test_labels_are_interpolated_one_by_one():
    generator = np.random.default_rng(0)
    blobs = ndimage.zoom(generator.integers(0, 4, (3, 3, 3)), 3, order=0)
    labels = np.array([0, 1, 7, 200], np.uint8)[blobs]
    out = resample(Volume(labels[None], grid((2, 2, 2))), (1, 1, 1), label=True)
    expected, shares = brute_force_labels(labels, out.shape)
    clear = shares[-1] - shares[-2] > 1e-3
    assert out.data.dtype == np.uint8
    assert clear.mean() > 0.5
    assert np.array_equal(out.data[0][clear], expected[clear])
    assert set(np.unique(out.data)) <= {0, 1, 7, 200}


def test_a_label_map_survives_there_and_back(to_grid):
    ball = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0) < 6
    label = Volume((ball * 3)[None].astype(np.uint8), grid((2, 2, 2)))
    again = to_grid(resample(label, (1.3, 1.1, 1.7), label=True), label)
    overlap = (
        2
        * ((again.data == 3) & (label.data == 3)).sum()
        / ((again.data == 3).sum() + (label.data == 3).sum())
    )
    assert overlap > 0.93


def body_on_a_table():
    data = np.full((1, 30, 60, 60), -1000, np.int16)
    data[0, :, 15:40, 20:45] = 40
    data[0, :, 43:44, 5:58] = 100
    return Volume(data, grid((3, 2, 2)))


def test_content_box_leaves_out_air_and_table():
    box = content_box(body_on_a_table(), ["ct"], margin_mm=0)
    assert box.start[0] == 0
    assert box.size[0] == 30
    assert 12 <= box.start[1] <= 15
    assert 40 <= box.stop[1] <= 43
    assert 17 <= box.start[2] <= 20
    assert 45 <= box.stop[2] <= 48


def test_content_box_holds_arms_and_hands_beside_the_trunk():
    data = np.full((1, 30, 60, 100), -1000, np.int16)
    data[0, :, 15:40, 30:70] = 40
    data[0, :, 25:31, 2:8] = 40  # an arm, 3 % of the trunk
    data[0, 10:14, 25:31, 90:96] = 40  # 1.7 ml: some tube
    box = content_box(Volume(data, grid((3, 2, 2))), "ct", margin_mm=0)
    assert box.start[2] <= 2
    assert 70 <= box.stop[2] < 90


@pytest.mark.parametrize("kind", ["ct", "mr"])
@pytest.mark.parametrize("value", [-1000, 0, 50])
def test_content_box_of_a_constant_volume_is_all_of_it(kind, value):
    volume = Volume(np.full((1, 5, 6, 7), value, np.int16), grid((1, 1, 1)))
    assert content_box(volume, [kind]) == Box((0, 0, 0), (5, 6, 7))


def test_content_box_holds_a_single_voxel():
    data = np.full((1, 40, 40, 40), -1000, np.int16)
    data[0, 37, 3, 20] = 0
    box = content_box(Volume(data, grid((1, 1, 1))), ["ct"])
    assert (Volume(data, grid((1, 1, 1))).crop(box).data == 0).any()
