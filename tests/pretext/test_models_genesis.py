"""Models Genesis: each distortion beside an obvious loop, and what is restored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from misfm.models.unet import build_unet
from misfm.pretext import Placement
from misfm.pretext.models_genesis import (
    Curve,
    Distortion,
    ModelsGenesis,
    Painting,
    Windows,
    apply_distortion,
    bend,
    sample_distortion,
    sample_painting,
    sample_windows,
    shuffled_index,
)
from misfm.seeding import generator_for
from misfm.volume import Box

SIZE = (20, 24, 28)
NOTHING = Distortion(flips=(), windows=None, curve=None, painting=None)
ALL = torch.ones(SIZE, dtype=torch.bool)


def image_of(channels=2, seed=0):
    return torch.randn(channels, *SIZE, generator=generator_for(seed))


def batch_of(task, valid=None, size=SIZE):
    patches = torch.randn(3, 1, 1, *size, generator=generator_for(0))
    placement = Placement.whole(3, 1, size)
    if valid is not None:
        placement = replace(placement, valid=torch.tensor(valid).expand(3, 1, 2, 3))
    return task.prepare(patches, placement, size, generator_for("prepare")), patches


def box_of(windows, i):
    return Box(tuple(windows.starts[i].tolist()), tuple(windows.sides[i].tolist()))


def test_windows_painted_one_by_one_hold_the_voxels_of_the_unshuffled_image():
    image = torch.arange(20.0 * 24 * 28).view(1, *SIZE)  # every voxel knows where it came from
    windows = sample_windows(ModelsGenesis(shuffle_cover=0.5), SIZE, generator_for(1))
    shuffled = image.flatten(1)[:, shuffled_index(windows, image)].view(image.shape)
    last = torch.full(SIZE, -1)
    for i in range(len(windows.sides)):
        last[box_of(windows, i).slices] = i
    assert torch.equal(shuffled[0][last == -1], image[0][last == -1])
    for i in range(len(windows.sides)):
        seen = shuffled[0][last == i].tolist()
        assert set(seen) <= set(image[0][box_of(windows, i).slices].flatten().tolist())
        assert len(set(seen)) == len(seen)
    assert float((shuffled != image).float().mean()) > 0.2


def test_a_window_is_shuffled_uniformly():
    image = torch.arange(4.0).view(1, 1, 1, 4)
    start, side = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 4]])
    orders = [tuple(shuffled_index(Windows(start, side, seed), image).tolist()) for seed in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert min(counts) > 25
    assert max(counts) < 80


@pytest.mark.parametrize(("shape", "count"), [((160, 160, 160), 10_000), ((80, 80, 160), 8_900)])
def test_the_published_number_of_windows(shape, count):
    windows = sample_windows(ModelsGenesis(), shape, generator_for(2))
    assert len(windows.sides) == pytest.approx(count, rel=0.01)
    for axis, side in enumerate(shape):
        assert int(windows.sides[:, axis].min()) == 1
        assert int(windows.sides[:, axis].max()) == side // 10
        assert int(windows.starts[:, axis].min()) == 0
        assert int((windows.starts + windows.sides)[:, axis].max()) == side


@pytest.mark.parametrize("shape", [(40, 40, 40), (64, 128, 128)])
def test_windows_cover_any_patch_alike(shape):
    windows = sample_windows(ModelsGenesis(), shape, generator_for(3))
    assert float(windows.sides.prod(1).sum()) / np.prod(shape) == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize("falling", [False, True])
def test_the_curve_is_the_bezier_curve(falling):
    controls = torch.tensor([[0.2, 0.7], [0.6, 0.3]])
    t = np.linspace(0, 1, 100_001)[:, None]
    points = 3 * (1 - t) ** 2 * t * controls[0].numpy() + 3 * (1 - t) * t**2 * controls[1].numpy() + t**3
    x = torch.rand(3, 5, 7, 9, generator=generator_for(4))
    values = points[::-1, 1] if falling else points[:, 1]
    bent = bend(x, Curve(controls, falling))
    np.testing.assert_allclose(bent.numpy(), np.interp(x.numpy(), points[:, 0], values), atol=1e-4)
    ends = bend(torch.tensor([0.0, 1.0]), Curve(controls, falling))
    assert ends.tolist() == ([1.0, 0.0] if falling else [0.0, 1.0])


@pytest.mark.parametrize("seed", range(10))
def test_every_curve_is_monotone(seed):
    x = torch.linspace(0, 1, 500)
    curve = Curve(torch.rand(2, 2, generator=generator_for(seed)), falling=False)
    steps = bend(x, curve).diff()
    assert float(steps.min()) >= -1e-6


def test_intensities_are_bent_within_the_range_of_the_real_voxels():
    real = ALL.clone()
    real[:, :3] = False
    image = image_of() * torch.tensor([1.0, 100])[:, None, None, None]
    image[:, :, :3] = -1e4
    curve = Curve(torch.tensor([[0.1, 0.9], [0.5, 0.8]]), falling=True)
    bent = apply_distortion(image, real, Distortion((), None, curve, None))
    for before, after in zip(image[:, real], bent[:, real], strict=True):
        low, high = before.min(), before.max()
        expected = low + (high - low) * bend((before - low) / (high - low), curve)
        assert torch.allclose(after, expected, atol=1e-4 * float(high - low))
        assert float(after[before.argmin()]) == pytest.approx(float(high), rel=1e-5)
    assert bool((bent >= image[:, real].amin(1)[:, None, None, None]).all())


@pytest.mark.parametrize("outside", [False, True])
def test_noise_of_the_patch_s_own_range_fills_the_boxes_or_all_but_them(outside):
    boxes = (Box((3, 3, 3), (8, 8, 8)), Box((5, 6, 7), (10, 12, 4)))
    image = image_of() * 100
    painted = apply_distortion(image, ALL, Distortion((), None, None, Painting(boxes, outside, seed=5)))
    within = torch.zeros(SIZE, dtype=torch.bool)
    for d in range(20):
        for h in range(24):
            for w in range(28):
                within[d, h, w] = any(
                    all(a <= x < b for a, x, b in zip(box.start, (d, h, w), box.stop, strict=True))
                    for box in boxes
                )
    filled = ~within if outside else within
    assert torch.equal(painted[:, ~filled], image[:, ~filled])
    for before, noise in zip(image, painted[:, filled], strict=True):
        low, high = float(before.min()), float(before.max())
        shares = (noise - low) / (high - low)
        assert 0 <= float(shares.min()) < 0.05
        assert 0.95 < float(shares.max()) <= 1
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("shape", [(42, 84, 63), (6, 1, 9)])
def test_painted_boxes_lie_within_the_patch(outside, shape):
    counts = []
    for seed in range(50):
        painting = sample_painting(shape, outside, generator_for(seed))
        counts.append(len(painting.boxes))
        for box in painting.boxes:
            for start, size, stop, side in zip(box.start, box.size, box.stop, shape, strict=True):
                border = 3 if side > 40 else 0
                assert start >= border
                assert stop <= side - border
                low, high = (3 / 7, 4 / 7) if outside else (1 / 6, 1 / 3)
                assert max(1, int(low * side)) <= size <= max(1, high * side)
    assert max(counts) == 5
    assert min(counts) >= int(outside)


def test_steps_happen_as_often_as_published():
    plans = [sample_distortion(ModelsGenesis(shuffle_cover=0), SIZE, generator_for(i)) for i in range(1000)]
    share = {
        "windows": np.mean([plan.windows is not None for plan in plans]),
        "curve": np.mean([plan.curve is not None for plan in plans]),
        "falling": np.mean([plan.curve.falling for plan in plans if plan.curve]),
        "painting": np.mean([plan.painting is not None for plan in plans]),
        "outside": np.mean([plan.painting.outside for plan in plans if plan.painting]),
        "unflipped": np.mean([plan.flips == () for plan in plans]),
    }
    # unflipped: no mirror at all, or exactly two along the same axis
    unflipped = 0.6 + 0.4 * 0.4 * 0.6 / 3
    expected = {"windows": 0.5, "curve": 0.9, "falling": 0.5, "painting": 0.9, "outside": 0.8}
    assert share == pytest.approx({**expected, "unflipped": unflipped}, abs=0.05)


def test_mirrors_move_input_target_and_padding_together():
    task = ModelsGenesis(p_flip=1, p_shuffle=0, p_curve=0, p_painting=0)
    batch, patches = batch_of(task, valid=((0, 0, 4), SIZE))
    assert torch.equal(batch.inputs, batch.targets)
    assert not torch.equal(batch.targets, patches[:, 0])
    for i, target in enumerate(batch.targets):
        axes = sample_axes(target, patches[i, 0])
        real = torch.ones(SIZE, dtype=torch.bool)
        real[:, :, :4] = False
        assert torch.equal(batch.real[i], real.flip(axes))


def sample_axes(mirrored, image):
    """Which axes were mirrored: found by trying all."""
    for code in range(8):
        axes = [axis - 3 for axis in range(3) if code >> axis & 1]
        if torch.equal(mirrored, image.flip(axes)):
            return axes
    raise AssertionError("not a mirror image")


def test_no_step_changes_the_image_it_is_given():
    image = image_of()
    before = image.clone()
    plan = sample_distortion(
        ModelsGenesis(p_shuffle=1, p_curve=1, p_painting=1),
        SIZE,
        generator_for(6),
    )
    assert not torch.equal(apply_distortion(image, ALL, plan), before)
    assert torch.equal(image, before)
    assert torch.equal(apply_distortion(image, ALL, NOTHING), before)


def test_a_constant_patch_stays_constant():
    plan = sample_distortion(ModelsGenesis(p_curve=1), SIZE, generator_for(7))
    assert bool((apply_distortion(torch.full((1, *SIZE), -3.0), ALL, plan) == -3).all())


def test_padding_counts_neither_in_loss_nor_in_score():
    task = ModelsGenesis()
    batch, _ = batch_of(task, valid=((0, 2, 0), (20, 24, 20)))
    outputs = batch.targets.clone()
    outputs[~batch.real[:, None]] = 1e6
    assert float(task.loss(outputs, batch)["restoration"]) == 0
    assert task.score(outputs, batch)["restored_error"] == 0
    outputs = outputs.masked_fill(batch.real[:, None], 0)
    expected = float(batch.targets[batch.real[:, None]].square().mean())
    assert float(task.loss(outputs, batch)["restoration"]) == pytest.approx(expected, rel=1e-5)


def test_score_stands_beside_what_needs_no_network():
    task = ModelsGenesis()
    batch, _ = batch_of(task)
    left = task.score(batch.inputs, batch)
    assert left["restored_error"] == left["unrestored_error"] > 0
    mean = task.score(torch.full_like(batch.targets, float(batch.targets.mean())), batch)
    assert mean["restored_error"] == pytest.approx(mean["mean_error"], rel=1e-5)
    assert mean["mean_error"] == pytest.approx(1, abs=0.1)  # the variance of the image


def test_loss_falls_on_one_batch(overfit):
    task = ModelsGenesis()
    size = (8, 12, 8)
    batch, _ = batch_of(task, size=size)
    torch.manual_seed(0)
    model = task.build_model(build_unet(1, size, channels=(4, 8)))
    losses = overfit(task, model, batch)
    assert max(losses[-3:]) < 0.9 * min(losses[:3])
