"""Lightning Fabric on the devices of a world: where networks and batches go, and how gradients are shared."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from misfm import world
from misfm.ranks import Started
from misfm.training.devices import own_device, own_place


def fabric_for(precision: Any) -> Fabric:
    """Return what puts networks and batches on the device of this process, and shares gradients.

    Args:
        precision: as Fabric names it.
    """
    if not world.is_entered():
        # Given its place, Fabric does not look for SLURM, where it may take one of several tasks for all.
        alone = Meeting(Started(0, 1, 1, 1, "misfm"))
        return Fabric(accelerator="auto", devices=1, precision=precision, plugins=alone)
    started, strategy = own_place()
    device = own_device(started)
    fabric = Fabric(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=started.local_size,
        num_nodes=started.num_nodes,
        strategy=strategy_for(strategy, started, device),
        precision=precision,
    )
    fabric.launch()  # which starts nothing, for all have been started
    return fabric


def strategy_for(name: str, started: Started, device: torch.device) -> Strategy:
    """Return how a network is spread over the devices."""
    devices = [device] * started.local_size
    if name == "fsdp":
        from misfm.training.sharding import ShardedStrategy  # of the parts of torch that load slowly

        return ShardedStrategy(devices, Meeting(started))
    return Replicated(
        parallel_devices=devices,
        cluster_environment=Meeting(started),
    )


class Replicated(DDPStrategy):
    """Each device has the whole network, and gradients are averaged while the backward pass goes on.

    Attributes:
        reaches_all: whether every loss depends on all of the network: what it does not reach takes time to
            look for, and is waited for without that.
    """

    reaches_all = True

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap a network; its buffers are the same everywhere, and validation is no common forward pass."""
        device = self.root_device
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            return DistributedDataParallel(
                module,
                device_ids=None if device.type == "cpu" else [device],
                broadcast_buffers=False,
                find_unused_parameters=not self.reaches_all,
            )


class Meeting(ClusterEnvironment):
    """Tells Fabric of the processes, which have started and met before."""

    def __init__(self, started: Started) -> None:
        super().__init__()
        self._started = started

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    @property
    def main_address(self) -> str:
        """Not asked for: the processes have met."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Likewise."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Never found by looking for it."""
        return False

    def world_size(self) -> int:
        """All processes."""
        return self._started.size

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """Of this process among all."""
        return self._started.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self._started.rank % self._started.local_size

    def node_rank(self) -> int:
        """Of this machine."""
        return self._started.rank // self._started.local_size


def average_first_gradients(fabric: Fabric, model: nn.Module) -> bool:
    """Average the gradients of a first step, which each rank has taken by itself, over all of them.

    They tell what of the network the loss reaches. :class:`Replicated` has to know.

    Args:
        fabric: of the network.
        model: the network as it was before Fabric had it.

    Returns:
        Whether the network is as it should be; else it is to be set up once more.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = [parameter.grad for parameter in trained if parameter.grad is not None]
    for gradient in reached:
        dist.all_reduce(gradient)
        gradient /= world.size()
    strategy = cast(Replicated, fabric.strategy)
    strategy.reaches_all = len(reached) == len(trained)
    return strategy.reaches_all


def is_sharded() -> bool:
    """Whether each of several devices has a share of the network."""
    return world.is_entered() and own_place()[1] == "fsdp"


def is_replicated(fabric: Fabric) -> bool:
    """Whether each of several devices has the whole network."""
    return isinstance(fabric.strategy, Replicated)


def set_up(fabric: Fabric, model: nn.Module) -> Any:
    """Bring a network onto the device, in the way of the strategy."""
    return fabric.setup_module(model)
