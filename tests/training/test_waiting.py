"""Fine-tuning waits for the device only where numbers are logged; see :mod:`far_device`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from far_device import THERE, Far, far_device
from torch import nn

from misfm.augment.labelled import AugmentSettings
from misfm.batches import RawPatches, with_images_on
from misfm.data.label_scheme import LabelScheme
from misfm.seeding import Draws, generator_for
from misfm.training.mean_teacher import MeanTeacherObjective, UnlabelledSettings
from misfm.training.objectives import SegmentationObjective

SIZE, SOURCE, CLASSES = (8, 10, 12), (12, 14, 16), 3
KINDS = (
    "spatial",
    "elastic",
    "noise",
    "blur",
    "low_resolution",
    "brightness",
    "contrast",
    "gamma",
    "carvemix",
)
ALWAYS = AugmentSettings(**{f"p_{kind}": 1.0 for kind in KINDS}, flip_axes=("D", "H", "W"))
REGIONS = LabelScheme(values={"whole": (1, 2), "core": (2,)}, order=(1, 2))


def objective(scheme=None):
    return SegmentationObjective(
        ALWAYS, SIZE, (2.0, 1.0, 1.0), scheme or LabelScheme.numbered(CLASSES), balance=0.5
    )


def labelled(*annotated):
    generator = generator_for("labelled")
    image = torch.randn(2, 1, *SOURCE, generator=generator)
    label = torch.randint(-1, CLASSES, (2, *SOURCE), generator=generator)
    return (image, label, torch.tensor(annotated)) if annotated else (image, label)


def waits_of(objective, raw, outputs, count=CLASSES):
    with torch.no_grad(), far_device() as waits:
        batch = objective.prepare(with_images_on(raw, THERE), Draws(("draws",)))
        assert isinstance(batch.inputs, Far)
        logits = torch.zeros(len(batch.inputs), count, *SIZE, device=THERE)
        terms = objective.loss(outputs(logits), batch)
    assert all(isinstance(term, Far) for term in terms.values())
    return waits


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("annotated", [(), ([True, True, False], [True, True, True])])
def test_fine_tuning_waits_for_nothing(annotated, deep):
    def outputs(logits):
        return [logits, logits[:, :, ::2, ::2, ::2]] if deep else logits

    assert waits_of(objective(), labelled(*annotated), outputs) == []


def test_neither_does_that_of_regions():
    assert waits_of(objective(REGIONS), labelled([True, False], [True, True]), lambda x: x, 2) == []


def test_nor_a_mean_teacher():
    size = torch.tensor([[[[0, 0, 0], SIZE]]]).expand(2, 1, 2, 3)
    scans = torch.randn(2, 1, 1, *SIZE, generator=generator_for("scans"))
    raw = RawPatches(scans, size, torch.zeros(2, 1, 3), torch.ones(2, 1, 3))
    teacher = MeanTeacherObjective(objective(), UnlabelledSettings(store=""), steps=10)
    assert waits_of(teacher, (labelled(), raw), lambda x: (x, x[2:], 5)) == []


def test_what_would_wait_is_counted():
    """The stand-in itself: each of these would make a GPU finish all it has to do."""
    x = torch.arange(6.0)
    with far_device() as waits:
        there = x.to(THERE, non_blocking=True)
        assert not waits
        for wait in (
            lambda: there.sum().item(),
            lambda: bool(there.sum() > 0),
            lambda: there.tolist(),
            lambda: there.cpu(),
            lambda: x.to(THERE),
            lambda: there[there > 2],
            lambda: there.nonzero(),
            lambda: torch.bincount(there.long()),
            lambda: torch.tensor([1.0], device=THERE),
            lambda: there[torch.tensor([0, 1])],
            lambda: torch.repeat_interleave(there.long()),
        ):
            before = len(waits)
            wait()
            assert len(waits) == before + 1
        with pytest.raises(AssertionError, match="different devices"):
            there + x
    assert torch.equal(there.here, x)


def test_the_norm_of_a_gradient_is_read_where_it_is_asked_for():
    """As ``clip_gradients`` of the loop gives it."""
    with torch.no_grad(), far_device() as waits:
        parameters = [nn.Parameter(torch.ones(3)).to(THERE, non_blocking=True)]
        for parameter in parameters:
            parameter.grad = torch.ones(3, device=THERE)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        assert not waits
        assert float(norm) == pytest.approx(3**0.5)
        assert waits == ["item"]


def test_a_batch_sends_its_images_and_keeps_the_rest():
    raw = RawPatches(*(torch.zeros(1, 1, 1, 2, 2, 2), *[torch.zeros(1)] * 3))
    with far_device():
        sent = with_images_on((labelled(), raw), THERE)
    assert isinstance(sent[0][0], Far)
    assert not isinstance(sent[0][1], Far)
    assert isinstance(sent[1].patches, Far)
    assert sent[1].placement.read is raw.patches
    assert with_images_on(raw, torch.device("cpu")).read is None
    assert replace(sent[1].placement, read=None) is not None
