"""Networks of which each device has a share: parameters, gradients and the optimiser's state (FSDP).

A block of the network (:mod:`misfm.models.blocks`) is put together where it is computed, and given up again
after that. What is saved is whole, and is the same whatever it was trained on: tensors are gathered, and
optimiser states keep the order of parameters that torch saves them in, so that a run is resumed with any
number of devices and any strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from misfm import world
from misfm.models import Backbone
from misfm.models.blocks import blocks_of

Value = TypeVar("Value")


class ShardedStrategy(ModelParallelStrategy):
    """Fabric's strategy for networks that are shared out among all devices of a world.

    The network is set up before its optimiser is built: ``fabric.setup_module``, then
    ``fabric.setup_optimizers``.

    Args:
        devices: of this machine's processes.
        meeting: tells Fabric of the processes.
    """

    def __init__(self, devices: list[torch.device], meeting: ClusterEnvironment) -> None:
        # Heads and crops return views, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        super().__init__(shard, data_parallel_size=world.size(), tensor_parallel_size=1)
        self.parallel_devices = devices
        self.cluster_environment = meeting


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Share the parameters of a model out among the devices of a mesh, in place.

    Backbones are put together block by block, and all else, such as heads, whose layers a pretext task may
    call one by one, when the model is called.

    Returns:
        The model.
    """
    mesh = mesh["data_parallel"] if mesh.ndim > 1 else mesh
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    for backbone in backbones:
        for block in blocks_of(backbone):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether devices have shares of a model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(state: Value) -> Value:
    """Return a state, such as of a model or a whole run, whose tensors are whole; all ranks have to ask.

    In the leader they are on the CPU; the others are given what they need to go on asking, and no values.
    Tensors that are not shared out are returned as they are.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if world.is_leader() else whole[:0].cpu()  # type: ignore[return-value]
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **gathered(vars(state)))
    if isinstance(state, Mapping):
        return type(state)({name: gathered(value) for name, value in state.items()})  # type: ignore[call-arg]
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def shares(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return this rank's shares of whole tensors; all ranks have to ask, with the same tensors.

    Args:
        state: by name, as :func:`gathered` returned them in the leader.
        like: by name, of the model or average that is to take them; what is not shared out there is returned
            as it is.

    Raises:
        ValueError: a tensor has another shape.
    """
    return {name: _share(value, like.get(name)) for name, value in state.items()}


def optimizer_shares(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return this rank's shares of an optimiser's state, for ``optimizer.load_state_dict``.

    Raises:
        ValueError: a tensor has another shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=True))
    states = {
        number: {
            name: _share(value, of_number[number]) if is_moment(value) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": states}


def is_moment(value: Any) -> bool:
    """Whether a value of an optimiser's state has a number for each of a parameter, as a count has not."""
    return isinstance(value, Tensor) and value.dim() > 0


def _share(value: Any, like: Any) -> Any:
    if not (isinstance(like, DTensor) and isinstance(value, Tensor)):
        return value
    if value.shape != like.shape:
        raise ValueError(f"a tensor of {tuple(value.shape)} for one of {tuple(like.shape)}")
    there = value.detach().to(like.to_local().device)
    return distribute_tensor(there, like.device_mesh, like.placements)


@torch.no_grad()
def put_together(trained: nn.Module, whole: nn.Module) -> None:
    """Copy all tensors of a sharded model into one of the same structure that is not; all ranks have to ask.

    Names, values and counters of the whole model are then those of the trained one, in each rank.
    """
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in trained.state_dict().items()
    }
    whole.load_state_dict(state)


def as_set_up(fabric: Fabric, model: nn.Module) -> Any:
    """Return a whole model on this rank's device that computes in the precision of the training."""
    return _FabricModule(model.to(fabric.device).eval(), fabric.strategy)


def global_norm(norm: Tensor) -> Tensor:
    """Return a norm of all gradients as a plain number; all ranks have to ask."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
