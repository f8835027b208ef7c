"""Whether a fine-tuning that is given no weights starts from those that ship with misfm."""

from __future__ import annotations

import json

from misfm.config import FinetuneSettings, NetworkSettings
from misfm.planning.machine import Machine
from misfm.planning.plan import multiple_of
from misfm.settings import NO_WEIGHTS, as_option
from misfm.weights import Opened
from misfm.weights.published import BUILTIN


def plan_weights(
    settings: FinetuneSettings, num_channels: int, machine: Machine, builtin: Opened
) -> tuple[str, str]:
    """Return what to start from, ``builtin`` where that fits and else scratch, and a sentence why.

    Args:
        settings: of the fine-tuning.
        num_channels: of its images.
        machine: what trains.
        builtin: the weights that ship.
    """
    obstacle = find_obstacle(settings, num_channels, machine, builtin)
    if obstacle is not None:
        return NO_WEIGHTS, f"weights {NO_WEIGHTS}: {obstacle}"
    why = "these fit, and with few labels they were ahead of random ones"
    return BUILTIN, f"weights {BUILTIN}: {why}; --weights {NO_WEIGHTS} starts from scratch"


def find_obstacle(
    settings: FinetuneSettings, num_channels: int, machine: Machine, builtin: Opened
) -> str | None:
    """Say why the weights that ship are not started from by default, or None."""
    info = builtin.info
    if info is None:
        return f"{BUILTIN} do not say of which network they are"
    if info.in_channels != num_channels:
        return f"{BUILTIN} take {info.in_channels} channel and the images have {num_channels}"
    given = settings.network
    if given is not None and given.name != info.network.name:
        return f"{BUILTIN} are of {info.network.name}, and {given.name} is given"
    for name, value in (given.options if given else {}).items():
        if as_json(info.network.options.get(name)) != as_json(value):
            return f"{BUILTIN} have other {name} than the {value} that are given"
    multiple = multiple_of(NetworkSettings.model_validate(info.network.model_dump()))
    if settings.patch_size is not None and any(side % multiple for side in settings.patch_size):
        patch = as_option(settings.patch_size)
        return f"{BUILTIN} take sides that are multiples of {multiple}, and {patch} is given"
    if machine.device != "cpu":
        return (
            f"on a GPU {BUILTIN} have not been compared with random weights, which get a wider network; "
            f"--weights {BUILTIN} starts from them"
        )
    return None


def as_json(value: object) -> str:
    """Return an option as files of settings hold it: lists and tuples are the same there."""
    return json.dumps(value, default=str)
