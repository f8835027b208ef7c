"""The base of every settings class: unknown keys are errors, values cannot change after they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Number = TypeVar("Number", int, float)


def ascending(bounds: tuple[Number, Number]) -> tuple[Number, Number]:
    """Refuse an inclusive range whose lower bound is above its upper one; a validator of settings."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
CountRange = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(ascending)]
"""Least and largest whole number, both included."""
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(ascending)]
"""Least and largest number; draws are uniform in between."""

PositiveShape = tuple[
    Annotated[int, Field(gt=0)],
    Annotated[int, Field(gt=0)],
    Annotated[int, Field(gt=0)],
]
"""Voxels along (D, H, W)."""

Spacing = tuple[
    Annotated[float, Field(gt=0)],
    Annotated[float, Field(gt=0)],
    Annotated[float, Field(gt=0)],
]
"""Millimetres per voxel along (D, H, W)."""


def as_option(numbers: Sequence[float] | str) -> str:
    """Write a spacing or shape as options take it: ``3,1,1``; a word such as "native" as it is."""
    return numbers if isinstance(numbers, str) else ",".join(f"{number:g}" for number in numbers)


class Settings(BaseModel):
    """Typed, validated, immutable settings of one part; each part of the package defines its own.

    The docstring below a field is its description: what it is, its unit, and the published value where that
    differs from the default, which it does not repeat.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
