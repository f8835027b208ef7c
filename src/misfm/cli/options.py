"""Options that commands share, and what people write after them, parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from misfm.errors import ConfigError

DEFAULT_RECIPE = "small"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Seed = Annotated[int | None, typer.Option(help="The one seed all draws come from.", min=0)]
Steps = Annotated[int | None, typer.Option(help="Training steps.", min=1)]
Triple = Annotated[str | None, typer.Option("--patch-size", metavar="D,H,W", help="Voxels the network sees.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples in a batch.", min=1)]
Network = Annotated[str | None, typer.Option(help="Network, such as unet or pctnet.")]
Recipe = Annotated[str | None, typer.Option(help="Named settings: small, mis-fm-2023, volf-2025.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, on top of the recipe.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, on top of all.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE|none", help="Start: file, run, published name or hf://OWNER/REPO; none: scratch."
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="SOURCE|none",
        help="Start: file, run, published name, hf://OWNER/REPO or none; default builtin where it fits.",
    ),
]
DeviceCount = Annotated[
    str | None, typer.Option("--devices", metavar="N|auto", help="Devices of a machine to train on.")
]
Nodes = Annotated[int | None, typer.Option("--nodes", help="Machines, started by srun or torchrun.", min=1)]
Strategy = Annotated[
    str, typer.Option("--strategy", metavar="auto|ddp|fsdp", help="fsdp shares the network out, too.")
]
Workers = Annotated[int, typer.Option(help="Processes; 0 works in this one.", min=0)]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")]
Out = Annotated[Path, typer.Option(help="Run folder.")]


def shared_options(
    network: str | None, steps: int | None, patch_size: str | None, batch_size: int | None, seed: int | None
) -> dict[str, Any]:
    """Settings that pretraining and fine-tuning share, by dotted key."""
    return {
        "network": None if network is None else {"name": network, "options": {}},
        "training.steps": steps,
        "patch_size": None if patch_size is None else numbers(patch_size, int, "--patch-size"),
        "batch_size": batch_size,
        "seed": seed,
    }


def numbers(text: str, kind: Callable[[str], Any], option: str) -> tuple[Any, Any, Any]:
    """Parse ``D,H,W``."""
    try:
        d, h, w = (kind(part) for part in text.split(","))
        if not all(0 < value < math.inf for value in (d, h, w)):
            raise ValueError("not positive")
    except ValueError as error:
        raise ConfigError(
            f"{option} takes three positive numbers D,H,W such as 3,4,4; got '{text}'."
        ) from error
    return d, h, w


def names(text: str) -> list[str]:
    """Parse ``A,B,...``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def integers(text: str, option: str) -> tuple[int, ...]:
    """Parse ``N,N,...``."""
    try:
        return tuple(int(part) for part in names(text))
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers N,N,...; got '{text}'.") from error


def case_choice(text: str | None) -> int | list[str] | None:
    """Parse ``--cases``: a number, or names; ``007`` and ``7,`` are names."""
    if text is None:
        return None
    is_number = re.fullmatch(r"[1-9][0-9]{0,8}|0", text)
    return int(text) if is_number else names(text)
