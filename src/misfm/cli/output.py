"""How commands tell what they did: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from misfm.text import printable


def say(message: str) -> None:
    """Tell the person at the terminal; standard output stays free for ``--json``."""
    print(printable(message), file=sys.stderr, flush=True)


def say_dice(result: dict[str, Any]) -> None:
    """Tell the mean Dice of each label, and of all, with intervals."""
    for label, scores in result["mean"].items():
        interval = (result["interval95"][label] or {}).get("dice")
        bounds = "" if interval is None else f"  95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        if scores["dice"] is not None:
            say(f"{label:20s} Dice {scores['dice']:.3f}{bounds}")


def finish(result: dict[str, Any], as_json: bool) -> None:
    """Print the result as the last line, if asked to."""
    if as_json:
        print(json.dumps(result, default=str), flush=True)
