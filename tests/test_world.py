from functools import partial

import pytest
import torch
import torch.distributed as dist
from worlds import in_world

from misfm import world
from misfm.ranks import Started, started_world, unused_tasks


def loss_of(x, weight):
    """A Dice-like loss of all samples, of which each rank has its share, and a mean that is gathered."""
    y = (x * weight).sigmoid()
    dice = world.total((y * x).sum()) / world.total(y.sum() + x.sum())
    return dice + world.gathered(y).logsumexp(0).mean()


def gradient_of_share(x):
    """The gradient averaged over ranks, as DistributedDataParallel makes it."""
    weight = torch.tensor(0.3, requires_grad=True)
    loss_of(x[world.share(len(x))], weight).backward()
    return world.total(weight.grad) / world.size()


@pytest.mark.parametrize("count", [4, 5])
def test_gradients_of_shares_average_to_that_of_the_whole(count):
    x = torch.rand(count, 7, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor(0.3, requires_grad=True)
    loss_of(x, weight).backward()
    for found in in_world(gradient_of_share, 2, x):
        torch.testing.assert_close(found, weight.grad)


def square(number):
    assert world.size() == 1  # what is shared out is no common work
    return number * number, dist.get_rank() if dist.is_initialized() else 0


def led():
    if not world.is_leader():
        return world.follow()
    found = world.shared_out(square, [1, 2, 3])
    world.dismiss("done")
    return found, world.anywhere.__name__


def test_the_leader_calls_and_the_others_follow():
    leader, follower = in_world(led, 2)
    assert leader[0] == [(1, 0), (4, 1), (9, 0)]
    assert follower == "done"


def held_length(thing, item):
    return len(thing) + item


def holding():
    mine = [world.rank()] * (world.rank() + 1)
    with world.holding(mine):
        return world.led(lambda: world.shared_out(partial(held_length, mine), [0, 0]))


def test_what_each_rank_holds_is_not_sent():
    assert in_world(holding, 2) == [[1, 2], [1, 2]]


def test_one_process_is_a_world_of_its_own():
    x = torch.ones(3)
    assert (world.rank(), world.size(), world.share(3)) == (0, 1, slice(0, 3))
    assert world.total(x) is x
    assert world.gathered(x) is x
    assert world.anywhere(True)
    assert world.shared_out(square, [2]) == [(4, 0)]


def test_how_this_process_was_started():
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}
    assert started_world(torchrun) == Started(3, 4, 2, 2, "torchrun")
    srun = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
    assert started_world(srun) == Started(1, 4, 4, 1, "srun")
    assert unused_tasks(srun) == 1
    batch = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    assert started_world(batch) is None
    assert unused_tasks(batch) == 4
    assert started_world({}) is None
