"""The base of every settings class: unknown keys are errors, values cannot change after they are checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Size = tuple[
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


class Settings(BaseModel):
    """Typed, validated, immutable settings of one part; each part of the package defines its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
