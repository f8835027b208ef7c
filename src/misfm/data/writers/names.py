"""Names and colours of labels, as every format shows them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

from misfm.text import one_line

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
_TURN = 0.6180339887498949
"""Of the hue from one label to the next: the golden section never comes near a hue that was."""


def colour_of(number: int) -> Colour:
    """A colour of its own for each label, counted from 0; the same in every format and every run."""
    hue = (number * _TURN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[number // 8 % 2], (0.95, 0.75)[number // 16 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def names_by_value(labels: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """What each value of a label map means; one that lies in several regions has all of their names."""
    values = sorted({value for of in labels.values() for value in of})
    return {value: " + ".join(name for name, of in labels.items() if value in of) for value in values}


def snap_table(labels: Mapping[str, tuple[int, ...]]) -> str:
    """The table of names and colours that ITK-SNAP reads ("import label descriptions")."""
    lines = ["# IDX -R- -G- -B- -A- VIS MSH LABEL", '0 0 0 0 0 0 0 "Clear Label"']
    for number, (value, name) in enumerate(names_by_value(labels).items()):
        red, green, blue = colour_of(number)
        quoted = one_line(name).replace('"', "'")
        lines.append(f'{value} {red} {green} {blue} 1 1 1 "{quoted}"')
    return "\n".join(lines) + "\n"
