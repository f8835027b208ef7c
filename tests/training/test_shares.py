"""A batch that is shared out: the samples are those of the whole, and so are losses, scores and gradients."""

from dataclasses import fields, replace

import pytest
import torch
from worlds import in_world

from misfm import world
from misfm.augment.labelled import AugmentSettings
from misfm.batches import Batch, RawPatches, Share
from misfm.data.label_scheme import LabelScheme
from misfm.models import create
from misfm.pretext import PRETEXTS
from misfm.seeding import Draws, generator_for
from misfm.testing.trial import Trial
from misfm.training.mean_teacher import MeanTeacher, MeanTeacherObjective, UnlabelledSettings
from misfm.training.objectives import PretextObjective, SegmentationObjective

SIZE = (12, 16, 14)
DRAWS = Draws((0, "prepare", 7, 0))
NUMBERED = LabelScheme.numbered(3)
REGIONS = LabelScheme(values={"all": (1, 2), "one": (1,)}, order=(1, 2))
PARTLY = torch.tensor([[True, True, False], [True, True, True], [True, False, True], [True, True, True]])


def raw_volumes(task):
    """Four volumes for a pretext task, some of whose voxels are padding or hidden, unequally many in each."""
    trial = Trial(task, volumes=4)
    placement = trial.placement
    valid = placement.valid.clone()
    valid[0, :, 1, 2] -= 3
    hidden = torch.zeros_like(trial.patches[:, :, 0], dtype=torch.bool)
    hidden[3, ..., :5] = True
    return RawPatches(
        trial.patches, valid, placement.origin, placement.spacing, placement.labels, hidden
    ), trial


def raw_cases(annotated=None, seed=0):
    """Four labelled patches with a margin, with fewer labelled voxels in the last ones."""
    label = torch.zeros(4, 14, 18, 16, dtype=torch.int64)
    label[:, 3:8, 4:9, 2:12], label[:2, 9:12, 3:] = 1, 2
    label[3, :5] = -1
    image = torch.randn(4, 1, 14, 18, 16, generator=generator_for("cases", seed)) + label[:, None]
    return (image, label) if annotated is None else (image, label, annotated)


def raw_unlabelled():
    patches = torch.randn(2, 1, 1, *SIZE, generator=generator_for("unlabelled"))
    valid = torch.tensor([[0, 0, 0], SIZE]).repeat(2, 1, 1, 1)
    valid[0, 0, 1, 2] = 6
    return RawPatches(patches, valid, torch.zeros(2, 1, 3), torch.ones(2, 1, 3))


def segmentation(scheme=NUMBERED, **more):
    augmentation = AugmentSettings(p_elastic=0.5, flip_axes=("H",), **more.pop("augmentation", {}))
    return SegmentationObjective(augmentation, SIZE, (1.0, 1.0, 1.0), scheme, **more)


def network(num_classes, seed=0):
    torch.manual_seed(seed)
    return create("unet", num_classes=num_classes, patch_size=SIZE, channels=[4, 8, 8], deep_supervision=True)


def fine_tunings():
    """What is fine-tuned for, a network for it, and raw batches."""
    teacher = MeanTeacherObjective(
        segmentation(), UnlabelledSettings(store="any", ramp=0.0, weight=2.0), steps=10
    )
    mixing = {"augmentation": {"p_carvemix": 1.0}}
    return {
        "classes": (segmentation(), network(3), raw_cases()),
        "balanced": (segmentation(balance=0.5), network(3), raw_cases()),
        "regions": (segmentation(REGIONS, balance=0.5), network(2), raw_cases()),
        "partly annotated": (segmentation(), network(3), raw_cases(PARTLY)),
        "regions, partly": (segmentation(REGIONS), network(2), raw_cases(PARTLY[:, 1:])),
        "mixed": (segmentation(**mixing), network(3), raw_cases()),
        "mixed, partly": (segmentation(**mixing), network(3), raw_cases(PARTLY)),
        "mean teacher": (teacher, MeanTeacher(network(3), 0.9), (raw_cases(), raw_unlabelled())),
    }


def everything():
    """By name, an objective, a model for it and a raw batch of four."""
    found = fine_tunings()
    for name in PRETEXTS.names():
        raw, trial = raw_volumes(PRETEXTS.get(name)())
        found[name] = PretextObjective(trial.task, trial.patch_size), trial.model(), raw
    return found


NAMES = [*fine_tunings(), *PRETEXTS.names()]


def own_rows(raw, share):
    """A share of a raw batch, of each part of it."""
    if isinstance(raw, torch.Tensor):
        return raw[share.of(len(raw))]
    if isinstance(raw, RawPatches):
        return raw.each(lambda each: own_rows(each, share))
    return None if raw is None else tuple(own_rows(each, share) for each in raw)


def outcome(objective, model, raw):
    """A share's batch, terms, score and gradients: the latter averaged over ranks, as training does it."""
    batch = objective.prepare(own_rows(raw, Share(world.rank(), world.size())), DRAWS)
    outputs = model(batch.inputs, *batch.context)
    terms = objective.loss(outputs, batch)
    sum(terms.values()).backward()
    gradients = {
        name: world.total(parameter.grad) / world.size()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    with torch.no_grad():
        score = objective.score(outputs, batch)
    return batch, {name: term.detach() for name, term in terms.items()}, score, gradients


def outcomes():
    return {name: outcome(*parts) for name, parts in everything().items()}


@pytest.fixture(scope="module")
def of_one():
    return outcomes()


@pytest.fixture(scope="module")
def of_two():
    return in_world(outcomes, 2)


def columns(batch):
    """All tensors of a batch by name."""
    found = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Batch):
            found.update({f"{each.name}.{name}": tensor for name, tensor in columns(value).items()})
        elif isinstance(value, tuple):
            found.update({f"{each.name}.{number}": tensor for number, tensor in enumerate(value)})
        elif value is not None:
            found[each.name] = value
    return found


@pytest.mark.parametrize("name", NAMES)
def test_shares_put_together_are_the_whole_batch(name, of_one, of_two):
    whole, parts = of_one[name][0], [found[name][0] for found in of_two]
    if name == "mean teacher":  # labelled patches of all processes do not follow each other
        parts, (whole,) = (
            [replace(each, inputs=each.labelled.inputs) for each in given] for given in (parts, [whole])
        )
    joined = type(parts[0]).joined(parts)
    assert columns(joined).keys() == columns(whole).keys()
    for key, column in columns(whole).items():
        assert torch.equal(columns(joined)[key], column), key


@pytest.mark.parametrize("name", NAMES)
def test_losses_scores_and_gradients_are_of_the_whole_batch(name, of_one, of_two):
    _, terms, score, gradients = of_one[name]
    for found in of_two:
        _, own_terms, own_score, own_gradients = found[name]
        torch.testing.assert_close(own_terms, terms, rtol=1e-5, atol=1e-6)
        assert own_score == pytest.approx(score, rel=1e-4, abs=1e-6, nan_ok=True)
        assert own_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            apart = (own_gradients[key] - gradient).norm()
            assert apart <= 1e-5 * gradient.norm() + 1e-7, key
