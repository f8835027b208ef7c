"""Bounds within which networks are built: settings and files of weights can ask for any number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from misfm.errors import ConfigError
from misfm.memory import available_bytes, in_gib, is_out_of_memory
from misfm.volume import Shape

GIVEN = ("name", "in_channels", "num_classes", "patch_size", "deep_supervision")
"""What follows from data and settings and is no option of a network."""
MOST = 2**16
"""Of channels, blocks, heads, sides of kernels and windows, or whatever a whole number counts."""
LONGEST = 64
"""Entries of a list among the options: levels and axes."""
MOST_VOXELS = 2**30
"""Of a patch: one channel of it takes 4 GiB."""
MOST_TENSORS = 10_000
"""Of parameters: the largest published networks have about a thousand."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that no network has.

    Raises:
        ValueError: names the option.
    """
    for name, value in options.items():
        if name in GIVEN:
            raise ValueError(f"'{name}' follows from data and settings and is no option of a network")
        _check(name, value, 0)


def _check(name: str, value: Any, depth: int) -> None:
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"'{name}' is {value}, and no network has more than {MOST:,} of anything")
    if isinstance(value, list | tuple | Mapping):
        if len(value) > LONGEST or depth > 3:
            raise ValueError(f"'{name}' is a list of more than {LONGEST} entries, or of lists of lists")
        for one in value.values() if isinstance(value, Mapping) else value:
            _check(name, one, depth + 1)


def check_patch(size: Shape) -> None:
    """Refuse a patch that fits into no machine.

    Raises:
        ConfigError: says how large it is.
    """
    if prod(size) > MOST_VOXELS:
        raise ConfigError(
            f"A patch of {size} has {prod(size):,} voxels, and networks are built for {MOST_VOXELS:,} at "
            "most: choose a smaller patch_size."
        )


@contextmanager
def within_memory(name: str) -> Iterator[None]:
    """Build modules as long as there is memory for their parameters, counted before they are filled.

    Args:
        name: of the network, for messages.

    Raises:
        ConfigError: they need more than is free, or never end.
    """
    free, size, count = available_bytes(), 0, 0

    def add(module: nn.Module, parameter_name: str, parameter: nn.Parameter | None) -> None:
        nonlocal size, count
        size += 0 if parameter is None else parameter.numel() * parameter.element_size()
        count += 1
        if size > free:
            raise ConfigError(
                f"Network '{name}' with these options has weights of more than {in_gib(size)}, and "
                f"{in_gib(free)} of memory are free: choose fewer channels or levels, or a smaller patch."
            )
        if count > MOST_TENSORS:
            raise ConfigError(
                f"Network '{name}' with these options has more than {MOST_TENSORS:,} layers: choose fewer."
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise ConfigError(
                f"Network '{name}' with these options needs more memory than there is: choose fewer channels "
                "or levels, or a smaller patch."
            ) from error
        raise
    finally:
        hook.remove()
