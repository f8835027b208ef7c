"""One seed drives everything: every draw comes from a generator seeded by what the draw is for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Draws:
    """Generators for one batch: one for each of its samples, so that any of them can be made alone.

    Attributes:
        purpose: what is drawn for, such as ``(seed, "prepare", step)``.
    """

    purpose: tuple[int | str, ...]

    def of_batch(self) -> torch.Generator:
        """Return the generator of what is drawn once for the batch."""
        return generator_for(*self.purpose)

    def of_sample(self, number: int) -> torch.Generator:
        """Return the generator of sample ``number`` of the batch."""
        return generator_for(*self.purpose, number)

    def apart(self, purpose: str) -> Draws:
        """Return draws for something else in the same batch."""
        return Draws((*self.purpose, purpose))


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


def draw_different(number: int, count: int, generator: torch.Generator) -> list[int]:
    """Draw ``count`` of ``0..number - 1``, all different as long as there are enough, in O(count)."""
    drawn: list[int] = []
    while len(drawn) < count:
        few = min(count - len(drawn), number)
        places = torch.arange(few)
        chosen = (places + draw_below(number - places, 1, generator)[0]).tolist()
        moved: dict[int, int] = {}  # a shuffle of all, of which only the first places are carried out
        for place, other in enumerate(chosen):
            drawn.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
    return drawn
