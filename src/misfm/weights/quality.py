"""What weights know of how good their label maps are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from misfm.settings import Settings

MOST_POWER = 64.0
"""Beyond this an estimate says nothing."""


class QualityScale(Settings):
    """What turns raw estimates into the Dice to expect, found out on validation cases."""

    powers: tuple[Annotated[float, Field(gt=0, le=MOST_POWER)], ...]
    """Of each label, in the order of the classes: a raw estimate to this power is the Dice to expect."""
    reference: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """The Dice to expect of each validation case, mean over its labels; sorted."""
