"""What people write after options, parsed: numbers, names, and the settings that trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from misfm.errors import ConfigError


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
    return int(text) if text.isdecimal() and str(int(text)) == text else names(text)
