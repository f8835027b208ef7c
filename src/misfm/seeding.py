"""One seed drives everything: every draw comes from a generator seeded by what the draw is for."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, such as ``(seed, "batch", rank, index)``.

    Because a batch's seed is a function of its index and not of what was drawn before, a resumed run
    repeats exactly the batches that an uninterrupted one would have seen.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with :func:`derive_seed` of ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def draw_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw one number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def draw_int(low: int, high: int, generator: torch.Generator) -> int:
    """Draw one integer from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def draw_below(limits: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (count, n) integers, column i uniform in 0..limits[i] - 1, on the CPU."""
    draws = torch.rand(count, len(limits), generator=generator, device=generator.device, dtype=torch.float64)
    return (draws.cpu() * limits).long()
