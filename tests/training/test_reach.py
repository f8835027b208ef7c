"""Every parameter gets a gradient in every step, or in none: ranks of a training rely on it."""

import pytest
import torch
from models.test_contract import EXAMPLES

from misfm.losses import segmentation_loss
from misfm.pretext import PRETEXTS
from misfm.testing import trial as trials
from misfm.testing.trial import Trial, takes

ONE_OF_EACH_KIND = [example for example in EXAMPLES if "-" not in example.name]
"""Names with a dash are sizes of another network."""


def reached(model, terms):
    """Names of the parameters that get a gradient."""
    model.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("example", ONE_OF_EACH_KIND, ids=lambda example: example.name)
def test_segmentation_reaches_all_of_a_network(example, deep_supervision):
    model, x = example.build(deep_supervision=deep_supervision).train(), example.image()
    every = {name for name, _ in model.named_parameters()}
    background = torch.zeros(2, *x.shape[2:], dtype=torch.int64)
    for target in (background, background + 1):
        assert reached(model, segmentation_loss(model(x), target)) == every


def kinds_of_batches(trial):
    """Batches as they mostly are, and such as there is next to nothing to learn from."""
    yield trial.prepare()
    for what in ("padding", "hidden"):
        trial.without_half(what)
        yield trial.prepare()
    yield trial.prepare(torch.full_like(trial.patches, -1.0))


@pytest.mark.parametrize("example", ONE_OF_EACH_KIND, ids=lambda example: example.name)
@pytest.mark.parametrize("name", PRETEXTS.names())
def test_a_pretext_task_reaches_all_but_a_decoder_that_it_leaves_alone(name, example, monkeypatch):
    task = PRETEXTS.get(name)()
    network = (example.name, dict(example.options), example.patch_sizes[0])
    if not takes(task, *network):
        pytest.skip("a task that does not take this network")
    monkeypatch.setattr(trials, "NETWORKS", (network,))
    trial = Trial(task)
    model = trial.model().train()
    every = {name for name, _ in model.named_parameters()}
    decoder = {name for name in every if name.startswith("backbone.decoder.")}
    expected = every if task.trains_decoder else every - decoder
    for batch in kinds_of_batches(trial):
        assert reached(model, trial.run(model, batch)) == expected
