"""The clean-up keeps the largest part of a label and touches nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from misfm.data.label_scheme import LabelScheme
from misfm.inference.largest_part import keep_largest_parts, labels_in_pieces

LABELS = (1, 2, 3)
maps = arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from((0, 0, 0, 1, 2, 3)))


def parts_of(mask):
    """Parts as sets of voxels, by walking from neighbour to neighbour."""
    left, parts = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}, []
    while left:
        part, border = set(), [left.pop()]
        while border:
            voxel = border.pop()
            part.add(voxel)
            near = {
                other for other in left if all(abs(a - b) <= 1 for a, b in zip(voxel, other, strict=True))
            }
            left -= near
            border += near
        parts.append(part)
    return parts


def body(shape=(12, 14, 16)):
    """Two organs, in one piece each."""
    label_map = np.zeros(shape, np.uint8)
    label_map[2:6, 2:7, 2:8] = 1
    label_map[7:10, 8:12, 3:9] = 3
    return label_map


@given(label_map=maps, cleaned=st.sets(st.sampled_from(LABELS)))
def test_it_keeps_what_walking_from_voxel_to_voxel_finds(label_map, cleaned):
    found = label_map.copy()
    changed = keep_largest_parts(found, sorted(cleaned))
    for label in LABELS:
        before, after = parts_of(label_map == label), parts_of(found == label)
        if label not in cleaned:
            assert np.array_equal(found == label, label_map == label)
        elif before:
            (kept,) = after
            assert kept in before
            assert len(kept) == max(map(len, before))
        assert (label in changed) == (label in cleaned and len(before) > 1)
    assert np.array_equal(found[found != label_map], np.zeros((found != label_map).sum()))
    assert keep_largest_parts(found, sorted(cleaned)) == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_a_speck_beside_an_organ_goes(dtype):
    expected = body().astype(dtype)
    planted = expected.copy()
    planted[10, 2, 14] = 1
    planted[1:3, 12:14, 14:16] = 3
    one = planted.copy()
    assert keep_largest_parts(one, [1]) == (1,)
    assert np.array_equal(one == 1, expected == 1)
    assert np.array_equal(one == 3, planted == 3)
    assert keep_largest_parts(planted, [1, 2, 3, 9]) == (1, 3)
    assert np.array_equal(planted, expected)


def test_an_edge_or_a_corner_holds_parts_together():
    label_map = np.zeros((4, 4, 4), np.uint8)
    label_map[0, 0, 0] = label_map[1, 1, 1] = label_map[1, 2, 2] = 2
    assert keep_largest_parts(label_map, [2]) == ()
    assert labels_in_pieces(label_map, [2]) == set()


def test_views_of_other_arrays_are_cleaned_in_place():
    planted = body()
    planted[10, 2, 14] = 1
    assert keep_largest_parts(planted.transpose(2, 0, 1)[::-1], [1]) == (1,)
    assert np.array_equal(planted, body())


@given(size=st.integers(1, 40), place=st.integers(0, 3))
def test_a_label_of_two_pieces_is_in_pieces_unless_one_is_a_speck(size, place):
    label_map = np.zeros((24, 10, 10), np.uint8)
    label_map[2:12] = 1
    label_map[place + 14].flat[:size] = 1
    assert labels_in_pieces(label_map, [1, 2]) == ({1} if size > 10 else set())
    assert labels_in_pieces(label_map, [2]) == set()


TUMOUR = LabelScheme(values={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}, order=(1, 2, 3))


def test_regions_are_one_piece_together_and_what_is_left_of_them_is_what_lies_around():
    label_map = np.zeros((10, 10, 20), np.uint8)
    label_map[1:9, 1:9, 1:14] = 1
    label_map[3:6, 3:6, 3:6] = 2
    label_map[4, 4, 3:8] = 3
    expected = label_map.copy()
    label_map[7, 7, 11:13] = 3, 2  # a second core
    label_map[1, 1, 16:18] = 2, 3  # a second tumour
    assert labels_in_pieces(expected, [1, 2, 3], TUMOUR) == set()
    assert labels_in_pieces(label_map, [1, 2, 3], TUMOUR) == {2, 3}
    core = label_map.copy()
    assert keep_largest_parts(core, [2], TUMOUR) == (2,)
    assert core[1, 1, 16:18].tolist() == core[7, 7, 11:13].tolist() == [1, 1]
    assert keep_largest_parts(label_map, [3, 2, 1], TUMOUR) == (1, 2)
    assert np.array_equal(label_map, expected)
