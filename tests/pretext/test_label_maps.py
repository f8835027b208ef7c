"""Label maps in drawn images: the targets are the labels, bent and mirrored as the images are."""

from dataclasses import replace

import pytest
import torch

from misfm.errors import ConfigError
from misfm.losses import IGNORE, segmentation_loss
from misfm.pretext import Placement
from misfm.pretext.label_maps import LabelMaps
from misfm.seeding import generator_for
from misfm.synthesis.label_table import FIRST, LabelTable

SIZE = (16, 16, 16)
TABLE = LabelTable.of([0, 1, 2, 9], {1: "left kidney", 2: "right kidney"})
BACKGROUND, LEFT, RIGHT, AROUND = range(FIRST, FIRST + 4)
STILL = {"rotation_degrees": 0.0, "scale": (1.0, 1.0), "p_elastic": 0.0}


def raw(task, people=(True, True, False)):
    """Patches of people, left and right halves, and of generated anatomy; the first plane is padding."""
    source = task.source_size(SIZE)
    labels = torch.full((len(people), 1, *source), 3)
    half = source[2] // 2
    labels[list(people), ..., :half] = LEFT
    labels[list(people), ..., half:] = RIGHT
    labels[list(people), :, :, :8] = AROUND
    placement = Placement.whole(len(people), 1, source)
    valid = placement.valid.clone()
    valid[:, :, 0, 0] = task.margin(SIZE)[0] + 1
    patches = torch.randn(len(people), 1, 1, *source, generator=generator_for("patches"))
    return patches, replace(placement, labels=labels, valid=valid)


def prepare(task, seed=0, **more):
    patches, placement = raw(task, **more)
    return task.prepare(patches, placement, SIZE, generator_for("draws", seed))


def test_targets_are_the_named_structures_and_padding_is_ignored():
    task = LabelMaps(table=TABLE, **STILL)
    batch = prepare(task)
    assert batch.inputs.shape == (3, 1, *SIZE)
    assert batch.is_people.tolist() == [True, True, False]
    assert (batch.targets[:, 0] == IGNORE).all()
    assert (batch.targets[2, 1:] == 3).all()
    seen = batch.targets[:2, 1:]
    assert set(seen.unique().tolist()) == {0, FIRST, FIRST + 1}  # left, right; what is around has no class
    assert (seen[:, :, :2] == 0).all()


def test_half_of_the_people_are_mirrored_and_left_stays_left_of_them():
    task = LabelMaps(table=TABLE, **STILL)
    sides = [prepare(task, seed).targets[0, 8, 15, 0].item() for seed in range(40)]
    assert set(sides) == {FIRST}  # what lies on the left is called left, mirrored or not
    one_sided = LabelMaps(table=LabelTable.of([0, 1, 2, 9], {1: "left kidney", 2: "liver"}), **STILL)
    sides = [prepare(one_sided, seed).targets[0, 8, 15, 0].item() for seed in range(20)]
    assert set(sides) == {FIRST}  # whose mirror image has no name, so there is none
    lopsided = LabelMaps(table=LabelTable.of([0, 1, 2, 9], {1: "liver", 2: "spleen"}), **STILL)
    sides = [prepare(lopsided, seed).targets[0, 8, 15, 0].item() for seed in range(40)]
    assert 10 <= sides.count(FIRST) <= 30


def test_people_are_drawn_and_generated_anatomy_keeps_its_look():
    task = LabelMaps(table=TABLE, p_dressed=0, p_recolour=0, **STILL)
    task = task.model_copy(update={"intensities": task.intensities.model_copy(update={f"p_{n}": 0 for n in
        ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")})})  # fmt: skip
    patches, _ = raw(task)
    batch = prepare(task)
    inner = tuple(slice(m, m + s) for m, s in zip(task.margin(SIZE), SIZE, strict=True))
    assert torch.allclose(batch.inputs[2, 0], patches[2, 0, 0][inner], atol=1e-5)
    assert not torch.allclose(batch.inputs[0, 0], patches[0, 0, 0][inner], atol=0.1)


def test_images_and_targets_are_bent_together():
    task = LabelMaps(table=TABLE, rotation_degrees=30, scale=(0.8, 1.3), p_elastic=1)
    first, second = prepare(task, 1), prepare(task, 2)
    assert not torch.equal(first.targets, second.targets)
    assert torch.equal(prepare(task, 1).inputs, first.inputs)


def test_a_patch_is_told_by_the_classes_of_its_own_kind():
    task = LabelMaps(table=TABLE, **STILL)
    batch = prepare(task)
    logits = torch.randn(3, task.table.num_classes, *SIZE, generator=generator_for("logits"))
    whole = sum(task.loss(logits, batch).values())
    people = [0, FIRST, FIRST + 1]
    targets = torch.where(batch.targets > 0, batch.targets - FIRST + 1, batch.targets)
    expected = 2 / 3 * sum(segmentation_loss(logits[:2, people], targets[:2], balance=0.5).values())
    expected += 1 / 3 * sum(segmentation_loss(logits[2:, :FIRST], batch.targets[2:], balance=0.5).values())
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)
    changed = logits.clone()
    changed[:2, 5] += 3  # a class of generated anatomy says nothing of people
    assert float(sum(task.loss(changed, batch).values())) == pytest.approx(float(whole), rel=1e-6)


def test_a_perfect_answer_scores_one():
    task = LabelMaps(table=TABLE, **STILL)
    batch = prepare(task)
    perfect = torch.nn.functional.one_hot(batch.targets.clamp(min=0), task.table.num_classes)
    score = task.score(10 * perfect.permute(0, 4, 1, 2, 3).float(), batch)
    assert score["pretext_dice"] == pytest.approx(1)
    assert score["chance_dice"] < 0.8


def test_generated_anatomy_alone_will_do_and_scans_will_not():
    task = LabelMaps(**STILL)
    batch = prepare(task, people=(False, False))
    assert not batch.is_people.any()
    assert float(sum(task.loss(torch.randn(2, FIRST, *SIZE), batch).values())) > 0
    patches, placement = raw(task)
    with pytest.raises(ConfigError, match="labels:DIR"):
        task.prepare(patches, replace(placement, labels=None), SIZE, generator_for("draws"))
