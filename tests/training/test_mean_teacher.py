"""Mean teacher: what the student is told, how the teacher follows, and what a run keeps of it."""

import math

import pytest
import torch

from misfm.augment.intensity import IntensitySettings
from misfm.augment.labelled import AugmentSettings
from misfm.batches import RawPatches
from misfm.data.label_scheme import LabelScheme
from misfm.models import create
from misfm.seeding import Draws, generator_for
from misfm.training.checkpoint import load_checkpoint
from misfm.training.loop import fit
from misfm.training.mean_teacher import MeanTeacher, MeanTeacherObjective, UnlabelledSettings
from misfm.training.objectives import SegmentationObjective
from misfm.training.optim import OptimizerSettings
from misfm.training.run import RunFolder
from misfm.training.settings import TrainingSettings

SIZE = (8, 8, 8)
THREE = LabelScheme.numbered(3)
STILL = {f"p_{name}": 0.0 for name in ("noise", "blur", "low_resolution", "brightness", "contrast", "gamma")}


def student(seed=0):
    torch.manual_seed(seed)
    return create("unet", num_classes=3, patch_size=SIZE, channels=[4, 8], deep_supervision=True)


def objective(steps=10, augmentation=None, scheme=THREE, **settings):
    if augmentation is not None:
        settings["augmentation"] = IntensitySettings(**augmentation)
    supervised = SegmentationObjective(AugmentSettings(**STILL, p_spatial=0.0), SIZE, (1.0, 1.0, 1.0), scheme)
    return MeanTeacherObjective(supervised, UnlabelledSettings(store="any", **settings), steps)


def labelled(index=0):
    label = torch.zeros(2, *SIZE, dtype=torch.int64)
    label[:, 2:5, 2:6, 1:5], label[:, 6:] = 1, 2
    return torch.randn(2, 1, *SIZE, generator=generator_for("labelled", index)) + label[:, None], label


def unlabelled(index=0, stop=8):
    """Raw patches of which the voxels from ``stop`` along W on are padding."""
    patches = torch.randn(3, 1, 1, *SIZE, generator=generator_for("unlabelled", index))
    valid = torch.tensor([[0, 0, 0], [8, 8, stop]]).expand(3, 1, 2, 3)
    return RawPatches(patches, valid, torch.zeros(3, 1, 3), torch.ones(3, 1, 3))


class Batches(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return labelled(index), unlabelled(index)


def prepared(task, **options):
    return task.prepare((labelled(), unlabelled(**options)), Draws(("prepare",)))


def terms(task, model, batch):
    return task.loss(model(batch.inputs, *batch.context), batch)


def test_a_teacher_equal_to_its_student_has_nothing_to_say_about_the_same_patch():
    model, task = MeanTeacher(student(), 0.99), objective(augmentation=STILL, ramp=0.0)
    assert terms(task, model, prepared(task))["consistency"].item() == pytest.approx(0, abs=1e-10)
    task = objective(ramp=0.0)
    assert terms(task, model, prepared(task))["consistency"] > 1e-7


def test_the_labelled_part_is_trained_as_without_the_other():
    model, task = MeanTeacher(student(), 0.99), objective()
    together = terms(task, model, prepared(task))
    batch = task.supervised.prepare(labelled(), Draws(("prepare",)))
    for name, term in task.supervised.loss(model.student(batch.inputs), batch).items():
        assert torch.allclose(together[name], term, atol=1e-6)


def test_consistency_is_the_mean_squared_difference_without_padding():
    model, task = MeanTeacher(student(), 0.99), objective(ramp=0.0, weight=2.0)
    batch = prepared(task, stop=5)
    seen = batch.context[0]
    assert torch.equal(seen, unlabelled().patches[:, 0])
    apart = model.student(batch.inputs)[0][2:].softmax(1) - model.teacher(seen)[0].softmax(1)
    expected = 2.0 * (apart**2)[..., :5].mean()
    assert terms(task, model, batch)["consistency"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_regions_agree_each_by_its_own_probability():
    scheme = LabelScheme(values={"all": (1, 2), "one": (1,), "two": (2,)}, order=(1, 2, 3))
    model, task = MeanTeacher(student(), 0.99), objective(ramp=0.0, weight=2.0, scheme=scheme)
    batch = prepared(task)
    apart = model.student(batch.inputs)[0][2:].sigmoid() - model.teacher(batch.context[0])[0].sigmoid()
    found = terms(task, model, batch)
    assert found["consistency"].item() == pytest.approx(2.0 * (apart**2).mean().item(), rel=1e-4)
    assert found.keys() == {"dice_loss", "binary_cross_entropy", "consistency"}


def test_weight_rises_as_published():
    task = objective(steps=100, weight=0.5)
    assert task.weight(0) == pytest.approx(0.5 * math.exp(-5))
    assert task.weight(20) == pytest.approx(0.5 * math.exp(-5 / 4))
    assert task.weight(40) == task.weight(99) == 0.5
    assert objective(ramp=0.0).weight(0) == 0.1


def test_only_the_student_learns_and_the_teacher_follows():
    model, task = MeanTeacher(student(), 0.9), objective()
    sum(terms(task, model, prepared(task)).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 1.0
    for step in range(2):
        task.after_step(model)
        decay = min(0.9, (1 + step) / (10 + step))
        targets = list(model.student.parameters())
        before = [decay * old + (1 - decay) * new for old, new in zip(before, targets, strict=True)]
    for teacher, expected in zip(model.teacher.parameters(), before, strict=True):
        assert torch.allclose(teacher, expected, atol=1e-6)
    image = labelled()[0]
    assert torch.equal(model.eval()(image)[0], model.student(image)[0])


class Killed(BaseException):
    """Stands for a process that ends here and now."""


class Doomed(Batches):
    def __getitem__(self, index):
        if index == 5:
            raise Killed
        return super().__getitem__(index)


def test_killed_and_resumed_is_the_uninterrupted_run_teacher_included(tmp_path):
    settings = TrainingSettings(
        steps=7,
        checkpoint_every=2,
        log_every=1,
        precision="float32",
        optimizer=OptimizerSettings(lr=1e-2),
    )

    def train(name, batches):
        run = RunFolder(tmp_path / name)
        (tmp_path / name / "checkpoints").mkdir(parents=True, exist_ok=True)
        model = MeanTeacher(student(), 0.9)
        fit(model, objective(7), batches, settings, run, seed=0)
        return model, load_checkpoint(run.last)

    whole, kept = train("whole", Batches())
    with pytest.raises(Killed):
        train("killed", Doomed())
    resumed, resumed_kept = train("killed", Batches())
    assert whole.steps == resumed.steps == 7
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(name.startswith("teacher.") for name in kept.model)
    assert kept.model["_extra_state"] == resumed_kept.model["_extra_state"] == 7
    teacher, learner = whole.teacher.parameters(), whole.student.parameters()
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(teacher, learner, strict=True))
