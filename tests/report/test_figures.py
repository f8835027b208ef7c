import io
from itertools import permutations, product

import matplotlib.image
import numpy as np
import pytest

from misfm.evaluation.arms import Arm, compare_arms
from misfm.report.figures import dice_by_labels, difference_plot, learning_curves, loss_curves
from misfm.report.pictures import FusionSample, fusion_strip, overlay, to_display
from misfm.volume import Volume


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    image = matplotlib.image.imread(io.BytesIO(png))
    assert min(image.shape[:2]) > 200
    return image


def has_colour(image: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    opaque = image[image[..., 3] > 0.9][:, :3]
    return bool((np.abs(opaque - wanted).max(axis=1) < 0.03).sum() > 20)


def arms() -> list[Arm]:
    return [
        Arm(name, [(10, 0.1), (20, base), (30, base)], {c: {"a_$x": base} for c in "ab"}, seed)
        for name, base in (("scratch", 0.4), ("cost $5 or _more$", 0.5))
        for seed in (0, 1)
    ]


def test_curves_show_every_arm_in_its_colour():
    image = pixels(learning_curves(arms()))
    assert has_colour(image, "#8f959e")
    assert has_colour(image, "#2f86c8")
    assert image[..., 3].min() == 0  # transparent: the page shows through in light and dark
    assert has_colour(pixels(loss_curves({"loss": [(i, 1 / (1 + i)) for i in range(200)]})), "#2f86c8")


def test_short_and_empty_curves_still_draw():
    pixels(learning_curves([Arm("a", [(5, 0.3)]), Arm("b")]))
    pixels(loss_curves({"a": [], "b": [(1, 0.5)]}))


def test_differences_are_drawn_by_label():
    assert has_colour(pixels(difference_plot(compare_arms(arms()))), "#2f86c8")


def test_dice_is_drawn_over_the_number_of_labels():
    image = pixels(dice_by_labels({5: compare_arms(arms()), 20: compare_arms(arms())}))
    assert has_colour(image, "#2f86c8")
    assert has_colour(image, "#8f959e")


def canonical() -> tuple[np.ndarray, np.ndarray]:
    """A random volume (S, A, R) as displayed (I, P, L): flipped along every axis."""
    data = np.random.default_rng(0).random((4, 5, 6))
    return data, data[::-1, ::-1, ::-1]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([1, -1], repeat=3)))
def test_every_orientation_is_displayed_alike(order, flips):
    data, expected = canonical()
    spacing = np.array([3.0, 2.0, 1.0])
    stored = data.transpose(order)[tuple(slice(None, None, f) for f in flips)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[2 - axis, column] = flip * spacing[axis]
    shown, shown_spacing = to_display(Volume(stored[None], affine))
    np.testing.assert_array_equal(shown, expected)
    assert shown_spacing == tuple(spacing)


def test_overlay_outlines_reference_and_prediction():
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[5:12, 6:14, 8:16] = 1
    labels[14:18, 16:20, 3:9] = 2
    image = Volume(np.random.default_rng(0).random((1, 20, 24, 28)), np.diag([3.0, 1.0, 1.0, 1.0]))
    drawn = pixels(
        overlay(image, image.with_data(labels), {"scratch": image.with_data(np.roll(labels, 3, 1))})
    )
    assert has_colour(drawn, "#3ec1f3")
    assert has_colour(drawn, "#ffa51f")
    nothing = image.with_data(np.zeros_like(labels))
    pixels(overlay(image, nothing, {}))


def test_fusion_strip_shows_samples_with_and_without_prediction():
    generator = np.random.default_rng(0)
    f, b = generator.random((2, 6, 16, 16))
    levels = generator.integers(0, 5, (6, 16, 16))
    fused = levels / 4 * f + (1 - levels / 4) * b
    plain = pixels(fusion_strip([FusionSample(f, b, fused, levels)] * 2, num_levels=4))
    predicted = pixels(fusion_strip([FusionSample(f, b, fused, levels, levels)], num_levels=4))
    assert predicted.shape[1] > plain.shape[1]
