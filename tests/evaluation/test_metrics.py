import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from misfm.evaluation import metrics

SPACING = (3.0, 0.5, 1.25)


def cube(
    start: tuple[int, int, int], size: int = 4, shape: tuple[int, int, int] = (16, 16, 16)
) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + size) for a in start)] = True
    return mask


def brute_force(prediction, reference, spacing):
    """Directed surface distances by comparing every pair of surface voxels."""

    def surface_points(mask):
        points = []
        for voxel in np.argwhere(mask):
            for step in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
                n = voxel + step
                if (n < 0).any() or (n >= mask.shape).any() or not mask[tuple(n)]:
                    points.append(voxel)
                    break
        return np.array(points) * spacing

    a, b = surface_points(prediction), surface_points(reference)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return pairs.min(axis=1), pairs.min(axis=0)


def test_single_voxels_apart_are_measured_in_millimetres():
    a, b = np.zeros((2, 8, 8, 8), bool)
    a[1, 1, 1] = b[3, 5, 1] = True
    distances = metrics.surface_distances(a, b, SPACING)
    expected = np.hypot(2 * 3.0, 4 * 0.5)
    assert metrics.hd95(distances) == pytest.approx(expected)
    assert metrics.assd(distances) == pytest.approx(expected)
    assert metrics.surface_dice(distances, 6.0) == 0
    assert metrics.surface_dice(distances, expected) == 1


@pytest.mark.parametrize(("axis", "spacing"), enumerate(SPACING))
def test_a_cube_shifted_along_one_axis(axis, spacing):
    """A 4-cube has 56 surface voxels. Shifted by one voxel, one face of each (16 voxels) leaves the other's
    surface by one spacing; of the 4 inner voxels of the opposite face, each lies one spacing off as well."""
    shift = [0, 0, 0]
    shift[axis] = 1
    a, b = cube((4, 4, 4)), cube((4 + shift[0], 4 + shift[1], 4 + shift[2]))
    distances = metrics.surface_distances(b, a, SPACING)
    off = min(spacing, *SPACING)  # inner voxels of the opposite face may be nearer to a side
    directed = np.array([spacing] * 16 + [off] * 4 + [0.0] * 36)
    assert np.sort(distances.from_prediction) == pytest.approx(np.sort(directed))
    assert metrics.hd95(distances) == pytest.approx(np.percentile(directed, 95))
    assert metrics.assd(distances) == pytest.approx(directed.mean())
    assert metrics.surface_dice(distances, off / 2) == pytest.approx(36 / 56)


def test_hd95_takes_the_larger_direction():
    reference = cube((4, 4, 4))
    prediction = reference.copy()
    prediction[14, 4:8, 4:8] = True  # a false island: far from the reference, which itself is covered
    distances = metrics.surface_distances(prediction, reference, (1, 1, 1))
    assert np.percentile(distances.from_reference, 95) == 0
    assert metrics.hd95(distances) == 7


def test_the_surface_includes_the_border_of_the_array():
    assert metrics.surface(np.ones((3, 3, 3), bool)).sum() == 26


masks = hnp.arrays(bool, (5, 6, 4)).filter(np.any)


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.tuples(*[st.floats(0.3, 4)] * 3))
def test_distances_equal_brute_force(prediction, reference, spacing):
    distances = metrics.surface_distances(prediction, reference, spacing)
    from_prediction, from_reference = brute_force(prediction, reference, spacing)
    np.testing.assert_allclose(distances.from_prediction, from_prediction, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(distances.from_reference, from_reference, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(masks)
def test_a_mask_equals_itself(mask):
    distances = metrics.surface_distances(mask, mask, SPACING)
    assert metrics.hd95(distances) == metrics.assd(distances) == 0
    assert metrics.surface_dice(distances, 0) == 1


def test_an_empty_mask_has_no_distances():
    with pytest.raises(ValueError, match="empty"):
        metrics.surface_distances(np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool), SPACING)


@settings(max_examples=30, deadline=None)
@given(*[hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 3))] * 2)
def test_dice_of_every_class_comes_from_one_confusion_matrix(prediction, reference):
    confusion = metrics.confusion_matrix(prediction, reference, 4)
    assert confusion.sum() == prediction.size
    for k, value in enumerate(metrics.dice(confusion), start=1):
        p, r = prediction == k, reference == k
        assert value == (2 * (p & r).sum() / (p.sum() + r.sum()) if (p | r).any() else None)


def test_labels_are_renumbered_and_others_become_background():
    assert metrics.compact(np.array([0, 7, 300, 5]), [300, 7]).tolist() == [0, 2, 1, 0]
    assert metrics.compact(np.array([1, 1]), []).tolist() == [0, 0]


def test_monai_agrees():
    monai = pytest.importorskip("monai.metrics", reason="MONAI is a benchmark dependency, not installed here")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    a = cube((3, 4, 4), 7) & (generator.random((16, 16, 16)) > 0.1)
    b = cube((5, 4, 3), 6)
    distances = metrics.surface_distances(a, b, SPACING)
    onehot = [torch.tensor(np.stack([~m, m]))[None].float() for m in (a, b)]
    hausdorff = monai.compute_hausdorff_distance(*onehot, percentile=95, spacing=SPACING)
    average = monai.compute_average_surface_distance(*onehot, symmetric=True, spacing=SPACING)
    surface = monai.compute_surface_dice(*onehot, class_thresholds=[2.0], spacing=SPACING)
    assert metrics.hd95(distances) == pytest.approx(hausdorff.item(), rel=1e-5)
    assert metrics.assd(distances) == pytest.approx(average.item(), rel=1e-5)
    assert metrics.surface_dice(distances, 2.0) == pytest.approx(surface.item(), rel=1e-5)
