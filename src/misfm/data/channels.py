"""Channels of a case by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether channels may be the same in the same order: their names are alike, or some are not known."""
    return not one or not other or [_plain(name) for name in one] == [_plain(name) for name in other]


def _plain(name: str) -> str:
    """A name as it is compared: letters and digits alone."""
    return re.sub(r"[\W_]+", "", name).casefold()
