"""How often volumes are drawn in pretraining: by weights of the groups they belong to, such as data sets."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Generator

from misfm.data.record import Record
from misfm.data.records import Records
from misfm.errors import ConfigError
from misfm.seeding import draw_different
from misfm.settings import Settings

Weight = Annotated[float, Field(ge=0, le=1e6)]
REST = "*"
"""Stands for each group that is not named."""
_TRIES = 100
"""Draws of a volume that is not in the batch yet, before one that is may be taken again."""
_SHOWN = 12
"""Groups that a message lists."""


class SamplingSettings(Settings):
    """How often the volumes of each group are drawn; those of one group are all drawn alike."""

    by: Literal["dataset", "store", "modality", "path"] = "dataset"
    """dataset: the first folder in which the sources of a store differ; store: the name of its folder;
    modality: ct, mr, pet, or several joined by +; path: the first pattern in weights that a source fits."""
    weights: dict[str, Weight] = Field(default={})
    """How often each group is drawn, in proportion to the others, whatever their numbers of volumes; 0 leaves
    it out, * is each group that is not named. With path, patterns such as ``*/abdomen/*``."""
    temperature: Annotated[float, Field(ge=1, le=1e6)] | None = None
    """Without weights: a group of n volumes is drawn in proportion to n^(1/temperature). 1 draws all volumes
    alike, a large number all groups."""


@dataclass(frozen=True, eq=False)
class WeightedChoice:
    """Draws the volumes of a batch: the group of each, then one in it.

    Attributes:
        members: places of the volumes of each group.
        shares: of the draws that each group gets, adding up to 1.
    """

    members: tuple[NDArray[np.int64], ...]
    shares: tuple[float, ...]

    def __call__(self, number: int, count: int, generator: Generator) -> list[int]:
        """Return ``count`` of ``0..number - 1``, different ones as long as that is no great trouble."""
        ends = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
        drawn: list[int] = []
        for _ in range(count):
            for _ in range(_TRIES):
                u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
                group = self.members[min(int(torch.searchsorted(ends, u, right=True)), len(ends) - 1)]
                place = int(group[int(v * len(group))])
                if place not in drawn:
                    break
            drawn.append(place)
        return drawn


def choice_of(
    settings: SamplingSettings | None, records: Sequence[Record], stores: Sequence[str]
) -> Callable[[int, int, Generator], Sequence[int]]:
    """Return what draws the volumes of a batch.

    Args:
        settings: None draws all volumes alike.
        records: those to draw from.
        stores: names of the stores that they are in.

    Raises:
        ConfigError: neither weights nor a temperature or both, a name of no group, a group without a weight,
            or one group only.
    """
    if settings is None:
        return draw_different
    names = groups_of(settings, Records.of(records), stores)
    sizes = Counter(names)
    shares = _shares(settings, sizes)
    found = np.array(names)
    kept = [group for group in sizes if shares[group] > 0]
    total = sum(shares[group] for group in kept)
    return WeightedChoice(
        tuple(np.flatnonzero(found == group) for group in kept),
        tuple(shares[group] / total for group in kept),
    )


def groups_of(settings: SamplingSettings, records: Records, stores: Sequence[str]) -> list[str]:
    """Return the name of the group of each volume; see :class:`SamplingSettings`."""
    if settings.by == "store":
        return [stores[number] for number in records.stores.tolist()]
    if settings.by == "modality":
        looks, places = records.looks
        return ["+".join(looks[place].kinds) for place in places.tolist()]
    if settings.by == "path":
        patterns = [pattern for pattern in settings.weights if pattern != REST]
        fits = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
        return [
            next((one for one, fit in zip(patterns, fits, strict=True) if fit(source)), REST)
            for source in records.sources
        ]
    folders = [PurePosixPath(source).parent.parts for source in records.sources]
    numbers = records.stores.tolist()
    common: dict[int, tuple[str, ...]] = {}
    for number, parts in zip(numbers, folders, strict=True):
        before = common.get(number, parts)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, parts, strict=False))
        common[number] = tuple(part for part, _ in same)
    return [_first_beyond(parts, len(common[number])) for number, parts in zip(numbers, folders, strict=True)]


def _first_beyond(parts: tuple[str, ...], shared: int) -> str:
    """The first folder of a path beyond those that it shares with all others, or the last that it shares."""
    return (parts[shared:] or parts[-1:] or ("?",))[0]


def _shares(settings: SamplingSettings, sizes: Mapping[str, int]) -> dict[str, float]:
    """How often each group is drawn, not adding up to anything."""
    there = ", ".join(f"{group} ({size})" for group, size in list(sizes.items())[:_SHOWN])
    there += ", …" if len(sizes) > _SHOWN else ""
    if bool(settings.weights) == (settings.temperature is not None):
        raise ConfigError(f"sampling takes either weights of groups or a temperature; groups are: {there}.")
    if settings.temperature is not None:
        shares = {group: size ** (1 / settings.temperature) for group, size in sizes.items()}
    else:
        weights = settings.weights
        if unknown := [name for name in weights if name not in sizes and name != REST]:
            raise ConfigError(
                f"sampling.weights names '{unknown[0]}', and no volume is of that {settings.by}: {there}."
            )
        if missing := [group for group in sizes if group not in weights and REST not in weights]:
            raise ConfigError(
                f"sampling.weights has none for '{missing[0]}': name it, or give '{REST}' for the rest; "
                f"there are {there}."
            )
        shares = {group: weights.get(group, weights.get(REST, 0.0)) for group in sizes}
    if not any(shares.values()):
        raise ConfigError(f"sampling.weights leaves out every {settings.by}: {there}.")
    if len(sizes) < 2:
        raise ConfigError(f"sampling finds only one {settings.by}, {there}: leave it out, or choose another.")
    return shares
