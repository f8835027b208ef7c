"""Stochastic depth: whole branches of samples, none outside of training, and the mean stays."""

import pytest
import torch

from misfm.models.drop_path import drop_path


def test_a_share_of_the_samples_loses_its_branch_and_the_mean_stays():
    torch.manual_seed(0)
    branch = drop_path(torch.ones(5000, 2, 4), 0.2, training=True)
    assert set(branch.unique().tolist()) == {0.0, 1.25}
    assert bool((branch == branch[:, :1, :1]).all())
    assert branch.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("probability", "training"), [(0.2, False), (0.0, True)])
def test_otherwise_nothing_is_drawn(probability, training):
    torch.manual_seed(0)
    before, branch = torch.get_rng_state(), torch.randn(3, 2, 4, generator=torch.Generator())
    assert drop_path(branch, probability, training=training) is branch
    assert torch.equal(torch.get_rng_state(), before)
