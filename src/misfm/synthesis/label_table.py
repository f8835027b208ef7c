"""What the values of label maps mean that images are drawn for; people's follow generated anatomy's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from misfm.augment.sides import Side, sides_of
from misfm.settings import Settings
from misfm.synthesis.structures import NUM_STRUCTURES

FIRST = NUM_STRUCTURES + 1
"""Value of the background of a person's label map: those below are of generated anatomy."""
_SHORT_BONES = "(?<![a-z])(?:ribs?|hip)(?![a-z])"
_LIKE_CT = (
    (re.compile(r"lung|air|trachea|sinus", re.IGNORECASE), -850.0),
    (re.compile(r"fat|adipose|skin", re.IGNORECASE), -90.0),
    (re.compile(r"ventricle|cerebrospinal|csf|bladder|fluid", re.IGNORECASE), 8.0),
    (re.compile(rf"bone|skull|vertebra|mandible|femur|sacrum|{_SHORT_BONES}", re.IGNORECASE), 450.0),
)
SOFT_TISSUE = 45.0
"""HU of what the name says nothing of."""


class LabelTable(Settings):
    """The values ``FIRST``, ``FIRST + 1`` … of stored label maps: background, targets, surroundings."""

    names: tuple[str, ...] = ()
    """Names of all of them, the background first; empty where there is generated anatomy only."""
    num_targets: int = 0
    """How many, after the background, are segmented; what follows them is only drawn."""

    @classmethod
    def of(cls, values: Sequence[int], names: Mapping[int, str]) -> LabelTable:
        """Order the values of label maps: background, those with a name, the others."""
        known, others = order(values, names)
        return cls(
            names=("background", *(names[value] for value in known), *(f"unnamed {v}" for v in others)),
            num_targets=len(known),
        )

    @property
    def num_classes(self) -> int:
        """Of the network: background, structures of generated anatomy, structures of people."""
        return FIRST + self.num_targets

    def classes(self) -> list[int]:
        """Class of each stored value."""
        people = [0, *range(FIRST, FIRST + self.num_targets)]
        return [*range(FIRST), *people, *[0] * (len(self.names) - len(people))][: FIRST + len(self.names)]

    def pairs(self) -> dict[str, dict[Side, int]]:
        """Stored values by side, of the names that tell a side, by what they say beside it."""
        return {
            rest: {side: FIRST + i for side, i in sides.items()}
            for rest, sides in sides_of(self.names).items()
        }

    def unpaired(self) -> list[str]:
        """Names that tell a side and have no counterpart on the other: their mirror images have no name."""
        alone = [next(iter(sides.values())) for sides in self.pairs().values() if len(sides) == 1]
        return [self.names[value - FIRST] for value in alone]

    def mirrored(self) -> list[int]:
        """Stored value that each one has in a mirror: that of the other side, where its name tells one."""
        values = list(range(FIRST + len(self.names)))
        for sides in self.pairs().values():
            if len(sides) == 2:
                left, right = sides["left"], sides["right"]
                values[left], values[right] = right, left
        return values

    def like_ct(self) -> list[float | None]:
        """HU that CT would show of each of :attr:`names`, as far as these tell; None for the unnamed."""
        named = self.names[: 1 + self.num_targets]
        return [-1000.0, *map(hounsfield, named[1:]), *[None] * (len(self.names) - len(named))][
            : len(self.names)
        ]


def order(values: Sequence[int], names: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """Sort values other than 0 into those with a name and those without."""
    inside = sorted(set(values) - {0})
    return [v for v in inside if v in names], [v for v in inside if v not in names]


def hounsfield(name: str) -> float:
    """Return about what CT shows of a structure, HU, by its name."""
    return next((hu for pattern, hu in _LIKE_CT if pattern.search(name)), SOFT_TISSUE)
