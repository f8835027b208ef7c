"""The base of every settings class: unknown keys are errors, values cannot change after they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from misfm.errors import ConfigError
from misfm.registry import closest

Tree = dict[str, Any]
"""Settings as YAML has them, not checked yet."""
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


NO_WEIGHTS = "none"
"""What settings say for weights that are random."""


MOST_CHARACTERS = 10_000
"""Of a setting that is text: paths and licences are shorter."""


class Settings(BaseModel):
    """Typed, validated, immutable settings of one part; each part of the package defines its own.

    The docstring below a field is its description: what it is, its unit, and the published value where that
    differs from the default, which it does not repeat.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_max_length=MOST_CHARACTERS,
    )


class Extended(Settings):
    """Settings with fields that came after files of them were written.

    A field of ``newer`` is written only where it differs from its default, so that all else is written as it
    always was: readers that do not know it, and what is hashed, see no difference.
    """

    newer: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _leave_out(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = {name for name in self.newer if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in serialise(self).items() if name not in unused}


SettingsT = TypeVar("SettingsT", bound=Settings)


def parse(kind: type[SettingsT], tree: Tree, what: str) -> SettingsT:
    """Validate ``tree``; an error names the key, what is wrong and the nearest valid key."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            options = sibling_keys(kind, first["loc"])
            raise ConfigError(
                f"There is no setting '{key}' in the {what}; {closest(key, options)}"
            ) from error
        raise ConfigError(
            f"Setting '{key}' of the {what} is wrong: {first['msg']} (got {shown(first.get('input'))})."
        ) from error


def shown(value: object, longest: int = 200) -> str:
    """Return a value as messages show it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def sibling_keys(kind: type[Settings], location: Sequence[int | str]) -> list[str]:
    """Dotted names of the settings that lie beside a misspelt one."""
    names: list[str] = []
    for part in location[:-1]:
        annotation = kind.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]  # a setting may be "NetworkSettings | None"
        nested = [one for one in candidates if isinstance(one, type) and issubclass(one, Settings)]
        if not nested:
            break
        kind = nested[0]
        names.append(str(part))
    return [".".join([*names, field]) for field in kind.model_fields]
