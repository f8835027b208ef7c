"""Volumes and boxes: turning, bounding boxes, and when two grids are the same."""

from itertools import permutations, product

import numpy as np
import pytest

from misfm.volume import GRID_TOLERANCE, Box, Volume, bounding_box, grid_difference, triple


def some_volume(shape=(4, 5, 6), spacing=(2.5, 0.7, 0.7)):
    affine = np.diag([*spacing, 1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = 10, -20, 30
    return Volume(np.random.default_rng(0).random((1, *shape)), affine)


def test_three_values_and_no_other_number():
    assert triple(n * n for n in range(3)) == (0, 1, 4)
    for count in (2, 4):
        with pytest.raises(ValueError, match="values to unpack"):
            triple(range(count))


@pytest.mark.parametrize("letters", ["".join(p) for p in product("LR", "AP", "IS")])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_turned_volume_keeps_every_voxel_in_its_place(letters, order):
    volume, orientation = some_volume(), "".join(letters[axis] for axis in order)
    turned = volume.turned(orientation)
    assert turned.orientation == orientation
    for index in ((0, 0, 0), (1, 4, 2), (3, 2, 5)):
        place = volume.affine @ (*index, 1)
        at = tuple(np.linalg.solve(turned.affine, place)[:3].round().astype(int))
        assert turned.data[0, *at] == volume.data[0, *index]
    assert np.array_equal(turned.turned(volume.orientation).data, volume.data)
    assert turned.turned(volume.orientation).affine == pytest.approx(volume.affine)


def test_the_bounding_box_of_a_mask_and_of_none():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[2, 1, 6] = mask[3, 4, 5] = True
    assert bounding_box(mask) == Box((2, 1, 5), (2, 4, 2))
    assert Box((0, 3, 5), (1, 1, 1)).around(Box((2, 1, 5), (2, 4, 2))) == Box((0, 1, 5), (4, 4, 2))


def moved(volume, millimetres):
    affine = volume.affine.copy()
    affine[0, 3] += millimetres
    return Volume(volume.data, affine)


def test_grids_are_the_same_up_to_the_rounding_of_headers():
    volume = some_volume()
    assert grid_difference(moved(volume, 0.7 * 0.05), volume) == ""
    assert grid_difference(moved(volume, 0.7 * 1.01 * GRID_TOLERANCE), volume) == (
        "their affines place a corner 0.0707 mm apart"
    )
    assert grid_difference(moved(volume, np.nan), volume) != ""
    assert grid_difference(some_volume((4, 5, 7)), volume) == "its shape is (4, 5, 7), not (4, 5, 6)"
    # A spacing of three decimals, at the end of the longest axis that scanners make.
    exact, rounded = (some_volume((2, 2, 512), (1.0, 0.703125, s)) for s in (0.703125, 0.703))
    assert grid_difference(rounded, exact) == ""
