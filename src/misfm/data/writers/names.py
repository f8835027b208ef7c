"""Names and colours of labels, as every format shows them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

from misfm.text import one_line

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
_TURN = 0.6180339887498949
"""Of the hue from one label to the next: the golden section never comes near a hue that was."""

_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = (0.9505, 1.0, 1.089)
"""sRGB to XYZ, and its white."""


def colour_of(number: int) -> Colour:
    """A colour of its own for each label, counted from 0; the same in every format and every run."""
    hue = (number * _TURN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[number // 8 % 2], (0.95, 0.75)[number // 16 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def lab_of(colour: Colour) -> tuple[float, float, float]:
    """A colour in CIELab (D65): lightness 0 to 100, and two axes around 0."""
    linear = [
        (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (c / 255 for c in colour)
    ]
    x, y, z = (
        sum(part * share for part, share in zip(linear, row, strict=True)) / white
        for row, white in zip(_TO_XYZ, _WHITE, strict=True)
    )
    fx, fy, fz = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


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
