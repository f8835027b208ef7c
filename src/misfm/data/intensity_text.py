"""Intensity rules as options and settings write them: ``auto``, ``ct``, ``ct:-200,600/pet``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import get_args

from misfm.data.intensity import IntensityRule, Kind
from misfm.errors import ConfigError
from misfm.registry import closest

AUTO = "auto"
BETWEEN = "/"
"""Between the rules of channels: no shell and no window has it."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_WINDOW = re.compile(r"ct:([-+]?\d+(?:\.\d+)?),([-+]?\d+(?:\.\d+)?)")


def parse_intensity(text: str) -> tuple[IntensityRule, ...]:
    """Return the rules that a text gives: one for all channels, or one for each; none for ``auto``.

    Raises:
        ConfigError: it is none.
    """
    return () if text == AUTO else tuple(_parse_rule(part) for part in text.split(BETWEEN))


def rules_for(text: str, kinds: Sequence[Kind]) -> tuple[IntensityRule, ...]:
    """Return the rule of each channel.

    Args:
        text: one rule for all, one for each, or ``auto``: that of its kind for each.
        kinds: of the channels.

    Raises:
        ConfigError: another number of rules than of channels.
    """
    rules = parse_intensity(text) or tuple(IntensityRule(kind=kind) for kind in kinds)
    if len(rules) == 1:
        return rules * len(kinds)
    if len(rules) != len(kinds):
        raise ConfigError(
            f"The intensity '{text}' has {len(rules)} rules and the images have {len(kinds)} channel(s): "
            "give one rule for all channels, or one for each."
        )
    return rules


def intensity_text(rules: Sequence[IntensityRule]) -> str:
    """Write the rules of channels as the option that gives them; one where all are alike."""
    texts = [_rule_text(rule) for rule in rules]
    return texts[0] if len(set(texts)) == 1 else BETWEEN.join(texts)


def kinds_text(kinds: Iterable[Kind]) -> str:
    """Write kinds for people, each once: ``CT and PET``."""
    return " and ".join(dict.fromkeys(kind.upper() for kind in kinds))


def _rule_text(rule: IntensityRule) -> str:
    return f"{rule.kind}:{rule.window[0]:g},{rule.window[1]:g}" if rule.window else rule.kind


def _parse_rule(text: str) -> IntensityRule:
    plain = text.replace(" ", "").casefold()
    for kind in KINDS:
        if plain == kind:
            return IntensityRule(kind=kind)
    window = _WINDOW.fullmatch(plain)
    if window and -math.inf < float(window[1]) < float(window[2]) < math.inf:
        return IntensityRule(kind="ct", window=(float(window[1]), float(window[2])))
    hint = closest(text, [AUTO, *KINDS, "ct:-200,600", "ct:-200,600/pet"])
    raise ConfigError(f"There is no intensity rule '{text}'; {hint}")
