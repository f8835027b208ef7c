"""Processes that do one thing together, such as one training on several GPUs: a *world* of *ranks*.

Rank 0, the *leader*, runs the command; it alone reads settings, decides and writes. The others *follow*: they
wait for what the leader calls by :func:`together`, do their part of it, and wait again. Code in which all
ranks take part exchanges tensors by :func:`total` and :func:`gathered`, which are differentiable, and which
are the identity where there is one process only; so there is one code for one process and for many.

Each rank computes the loss of the *whole* batch, of which it has a share of the samples, and gradients are
then averaged over ranks, as ``DistributedDataParallel`` does: that is the gradient of the whole batch, up to
the order of additions.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from misfm.batches import Share

Item = TypeVar("Item")
Result = TypeVar("Result")
P = ParamSpec("P")


@dataclass(frozen=True)
class World:
    """The processes of which this is one.

    Attributes:
        rank: of this process, 0 the leader.
        size: how many there are.
        control: group for what is no gradient: objects and decisions, through the CPU's memory, with a time
            limit so long that nobody who waits for a validation gives up.
    """

    rank: int
    size: int
    control: Any

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over all ranks, differentiable."""
        return _Total.apply(x)  # type: ignore[no-untyped-call,no-any-return]

    def gathered(self, x: Tensor) -> Tensor:
        """Return the rows of all ranks, differentiable."""
        return _Gathered.apply(x)  # type: ignore[no-untyped-call,no-any-return]


class Followed(Exception):
    """In a process that follows: the leader is done. Carries what it returned."""

    def __init__(self, result: Any) -> None:
        self.result = result


_world: World | None = None
_held: list[Any] = []


def size() -> int:
    """Return the number of processes; 1 without a world."""
    return 1 if _world is None else _world.size


def rank() -> int:
    """Return the number of this process, 0 for the leader; 0 without a world."""
    return 0 if _world is None else _world.rank


def is_entered() -> bool:
    """Whether this process is one of several."""
    return _world is not None


def is_leader() -> bool:
    """Whether this process decides and writes."""
    return rank() == 0


@contextmanager
def member(world: World) -> Iterator[None]:
    """Be one of a world while the context lasts."""
    global _world
    assert _world is None
    _world = world
    try:
        yield
    finally:
        _world = None


@contextmanager
def alone() -> Iterator[None]:
    """Be one process of its own while the context lasts, for work that is no common one."""
    global _world
    kept, _world = _world, None
    try:
        yield
    finally:
        _world = kept


@contextmanager
def holding(*things: Any) -> Iterator[None]:
    """Hold what each rank has, such as the network: where the leader sends it, they take their own."""
    before = len(_held)
    _held.extend(things)
    try:
        yield
    finally:
        del _held[before:]


def share(count: int) -> slice:
    """Return which of ``count`` samples of a batch are this rank's; those of all ranks follow each other.

    Shares differ by one where ``count`` is no multiple of the number of ranks.
    """
    return Share(rank(), size()).of(count)


def total(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all ranks, differentiable; ``x`` itself without a world."""
    return x if _world is None else _world.total(x)


def gathered(x: Tensor) -> Tensor:
    """Return the rows of all ranks one after the other, differentiable; ``x`` itself without a world.

    Args:
        x: rows along the first axis, as many as there may be in each rank; the other axes alike.
    """
    return x if _world is None else _world.gathered(x)


def anywhere(flag: bool) -> bool:
    """Whether something holds in any rank; all of them have to ask."""
    if _world is None:
        return flag
    found = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_world.control)
    return bool(found)


def from_leader(value: Result) -> Result:
    """Return what the leader has; all ranks have to ask."""
    if _world is None:
        return value
    found: Result = _broadcast(value, _world)
    return found


def together(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Let all ranks call a function; to be called by the leader, while the others follow.

    Function and arguments are pickled, so functions are of modules and arguments small, or tensors. An error
    in one of the ranks ends its process; the others find that out when they next exchange something.

    Returns:
        What the leader's own call returns.
    """
    if _world is not None:
        _broadcast((function, args, kwargs), _world)
    return function(*args, **kwargs)


def shared_out(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Share calls of a function out among all ranks; to be called by the leader, while the others follow.

    Returns:
        The result of each item, in their order.
    """
    return together(_part, function, items)


def follow() -> Any:
    """Do what the leader calls until it is done; to be called by all ranks but the leader.

    Returns:
        What it gave to :func:`dismiss`.
    """
    assert _world is not None
    assert not is_leader()
    while True:
        try:
            function, args, kwargs = _broadcast(None, _world)
            function(*args, **kwargs)
        except Followed as done:
            return done.result


def dismiss(result: Any = None) -> None:
    """End :func:`follow` in the others, which then return ``result``; to be called by the leader."""
    if _world is not None:
        _broadcast((_end, (result,), {}), _world)


def led(work: Callable[[], Result]) -> Result:
    """Let the leader do work, in which the others do what it calls; to be called by all ranks.

    Returns:
        In each, what the leader's work returned. Where that fails the others are left following.
    """
    if not is_leader():
        found: Result = follow()
        return found
    result = work()
    dismiss(result)
    return result


def _end(result: Any) -> None:
    raise Followed(result)


def _part(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do every ``size``-th item; in the leader, return the results of all."""
    mine_here = items[rank() :: size()]
    with alone():
        mine = [function(item) for item in mine_here]
    if _world is None:
        return mine
    theirs: list[Any] = [None] * size()
    dist.all_gather_object(theirs, mine, group=_world.control)
    if not is_leader():
        return []
    return [theirs[place % size()][place // size()] for place in range(len(items))]


def _broadcast(value: Any, world: World) -> Any:
    """Send an object of the leader to all."""
    length = torch.zeros(1, dtype=torch.int64)
    if world.rank == 0:
        buffer = io.BytesIO()
        _Pickler(buffer).dump(value)
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).clone()
        length += len(content)
        dist.broadcast(length, 0, group=world.control)
        dist.broadcast(content, 0, group=world.control)
        return value
    dist.broadcast(length, 0, group=world.control)
    content = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0, group=world.control)
    # From a process of the same command, started by the same user: as trusted as its own memory.
    return _Unpickler(io.BytesIO(content.numpy().tobytes())).load()


class _Pickler(pickle.Pickler):
    """Sends what each rank holds by its place."""

    def persistent_id(self, value: Any) -> int | None:
        """Return the place of what is held; None for all else."""
        return next((place for place, one in enumerate(_held) if one is value), None)


class _Unpickler(pickle.Unpickler):
    """Finds what this rank holds in that place."""

    def persistent_load(self, place: Any) -> Any:
        """Return it."""
        return _held[place]


class _Total(torch.autograd.Function):
    """Sum over ranks; every rank goes on to compute the same from it, so gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class _Gathered(torch.autograd.Function):
    """Rows of all ranks; the gradient of a rank's rows is the sum of what all ranks have for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert _world is not None
        numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
        dist.all_gather(numbers, torch.tensor([len(x)]), group=_world.control)  # a GPU is not waited for
        counts = [int(number) for number in numbers]
        most = max(counts)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]).contiguous()
        rows = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(rows, padded, group=None if x.is_cuda else _world.control)
        before = sum(counts[: rank()])
        ctx.mine = slice(before, before + len(x))
        return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient[ctx.mine]
