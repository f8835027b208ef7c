"""Generated anatomy of a trunk: its structures, painted from the skin inwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from misfm.synthesis.canvas import Array, Canvas, Curve, Rng, vary
from misfm.synthesis.spine import draw_spine
from misfm.synthesis.structures import (
    AORTA,
    BOWEL,
    FAT,
    HEART,
    KIDNEYS,
    LEFT,
    LIVER,
    LUNGS,
    OESOPHAGUS,
    PELVIS,
    PSOAS_MUSCLES,
    RIB,
    RIGHT,
    SPLEEN,
    STERNUM,
    STOMACH,
    VENA_CAVA,
    WALL,
)


def draw(canvas: Canvas, rng: Rng, medium: float, num_bowel_loops: int) -> None:
    """Draw a trunk; ``medium`` is the contrast medium, 0 none to 1 arterial."""
    canvas = _draw_body_wall(canvas, rng)
    _draw_chest(canvas, rng, medium)
    _draw_upper_belly(canvas, rng, medium)
    _draw_lower_belly(canvas, rng, num_bowel_loops)
    curve = _spine_curve(rng)
    draw_spine(canvas, rng, curve)
    _draw_vessels(canvas, rng, medium, curve)
    for side in (LEFT, RIGHT):
        _draw_kidney(canvas, rng, medium, side)


def _draw_body_wall(canvas: Canvas, rng: Rng) -> Canvas:
    """Skin, fat, muscle, ribs and the fat-filled cavity inside."""
    up, back, left = canvas.up, canvas.back, canvas.left
    depth_ratio, squareness = rng.uniform(0.66, 0.76), rng.uniform(0.3, 0.8)
    waist = 1 + rng.uniform(0.02, 0.07) * np.cos(3.2 * up + rng.uniform(-0.5, 0.5))
    x2, y2 = (left / (0.93 * waist)) ** 2, (back / (0.93 * depth_ratio * waist)) ** 2
    radius = (1 - squareness) * np.sqrt(x2 + y2) + squareness * np.sqrt(np.sqrt(x2**2 + y2**2))
    depth = (1 - radius) * depth_ratio
    fat = rng.uniform(0.04, 0.13) * (1 + 0.25 * canvas.wobble)
    muscle = rng.uniform(0.07, 0.11)
    canvas.paint(-depth, 20, FAT)
    canvas.paint(0.015 - depth, -100 + 8 * canvas.texture, FAT)
    canvas.paint(fat - depth, rng.uniform(45, 60) + 12 * canvas.texture, WALL)
    wall = depth - fat - muscle
    canvas.paint(-wall, -95 + 12 * canvas.texture)
    canvas = replace(canvas, wall=wall)
    spacing, slope = rng.uniform(0.23, 0.28), rng.uniform(0.4, 0.6)
    phase = (up - slope * back) / spacing + rng.uniform()
    across = np.abs(phase - np.rint(phase)) * spacing
    rib = np.sqrt((across / 1.1) ** 2 + (wall + 0.5 * muscle) ** 2) - 0.033
    rib = np.maximum(rib, -0.15 - up + 0.5 * np.maximum(0, -back))
    canvas.paint(rib, np.where((back < -0.25) & (np.abs(left) < 0.4), 130, rng.uniform(400, 800)), RIB)
    return canvas


def _draw_chest(canvas: Canvas, rng: Rng, medium: float) -> None:
    """Lungs above their domes, heart, windpipe, oesophagus and sternum."""
    dome = rng.uniform(0.25, 0.4)
    air = rng.uniform(-880, -780)
    for side in (LEFT, RIGHT):
        lung = canvas.ellipsoid(
            (0.8, 0.03, 0.42 * side), (0.95, rng.uniform(0.46, 0.54), rng.uniform(0.3, 0.36)), 0.015
        )
        base = dome - 0.05 * side - 1.1 * ((canvas.left - 0.42 * side) ** 2 + canvas.back**2)
        lung = np.maximum(np.maximum(lung, 0.02 - canvas.wall), base - canvas.up)
        hu = air + 45 * canvas.texture + 130 * np.maximum(0, canvas.texture - 1.4)
        canvas.paint(lung, hu, LUNGS[side])
    centre, radii = vary(rng, (dome + 0.22, -0.2, 0.12), (0.26, 0.24, 0.28))
    part = canvas.near(centre, radii)
    heart = part.ellipsoid(centre, radii, 0.02)
    part.paint(heart - 0.03, -90)
    part.paint(heart, rng.uniform(38, 50) + 100 * medium + 8 * part.texture, HEART)
    part.paint(heart + 0.08, rng.uniform(35, 45) + 150 * medium + 8 * part.texture, HEART)
    canvas.paint(_tube(canvas, 0.06, 0.0, 0.05, bottom=dome + 0.4), -980)
    canvas.paint(_tube(canvas, 0.12, 0.05, 0.035, bottom=dome - 0.1), 35, OESOPHAGUS)
    sternum = np.maximum(np.abs(canvas.wall + 0.04) - 0.03, np.abs(canvas.left) - 0.09)
    sternum = np.maximum(np.maximum(sternum, canvas.back + 0.3), dome - canvas.up)
    canvas.paint(sternum, rng.uniform(250, 450), STERNUM)


def _draw_upper_belly(canvas: Canvas, rng: Rng, medium: float) -> None:
    """Liver, spleen and stomach with a gas bubble on top of its fluid."""
    hu = rng.uniform(45, 65) + 45 * medium
    centre, radii = vary(rng, (0.03, -0.08, -0.4), (0.33, 0.42, 0.38))
    lobe, lobe_radii = vary(rng, (0.08, -0.26, -0.02), (0.2, 0.2, 0.34))
    part = canvas.near((0.05, -0.1, -0.2), (0.45, 0.55, 0.65))
    liver = np.minimum(part.ellipsoid(centre, radii, 0.03), part.ellipsoid(lobe, lobe_radii, 0.02))
    liver = np.maximum(liver, 0.015 - part.wall)
    part.paint(liver - 0.01, -60)
    part.paint(liver, hu + 7 * part.texture, LIVER)
    vessels = np.maximum(np.abs(part.wobble) - 0.12, np.abs(part.texture) - 0.5) * 0.1
    part.paint(np.maximum(vessels, liver + 0.08), hu + 30 * medium - 10, LIVER)
    centre, radii = vary(rng, (0.1, 0.2, 0.58), (0.24, 0.2, 0.14))
    part = canvas.near(centre, radii)
    spleen = np.maximum(part.ellipsoid(centre, radii, 0.03), 0.015 - part.wall)
    part.paint(spleen, rng.uniform(42, 58) + 70 * medium + 7 * part.texture, SPLEEN)
    centre, radii = vary(rng, (0.05, -0.22, 0.42), (0.24, 0.24, 0.24))
    part = canvas.near(centre, radii)
    stomach = np.maximum(part.ellipsoid(centre, radii, 0.04), 0.02 - part.wall)
    part.paint(stomach, rng.uniform(35, 50), STOMACH)
    part.paint(stomach + 0.04, rng.uniform(0, 40) + 15 * part.texture, STOMACH)
    gas = np.maximum(stomach + 0.04, part.back - centre[1] + rng.uniform(-0.05, 0.2))
    part.paint(gas, -960, STOMACH)


def _draw_lower_belly(canvas: Canvas, rng: Rng, num_loops: int) -> None:
    """Bowel loops with gas or fluid, psoas muscles and the wings of the pelvis."""
    for _ in range(num_loops):
        centre = (rng.uniform(-1.0, -0.15), rng.uniform(-0.42, 0.05), rng.uniform(-0.5, 0.5))
        radii = (rng.uniform(0.09, 0.2), rng.uniform(0.08, 0.15), rng.uniform(0.09, 0.24))
        part = canvas.near(centre, radii)
        loop = np.maximum(part.ellipsoid(centre, radii, 0.04), 0.02 - part.wall)
        part.paint(loop, rng.uniform(30, 60), BOWEL)
        content = -900.0 if rng.uniform() < 0.3 else rng.uniform(0, 60)
        part.paint(loop + 0.035, content + 20 * part.texture, BOWEL)
    for side in (LEFT, RIGHT):
        centre, radii = vary(rng, (-0.75, 0.27, 0.23 * side), (0.6, 0.12, 0.1))
        psoas = canvas.ellipsoid(centre, radii, 0.01)
        canvas.paint(psoas, 55 + 8 * canvas.texture, PSOAS_MUSCLES[side])
    wing = np.abs(canvas.ellipsoid((-1.1, -0.02, 0.0), (0.6, 0.46, 0.66), 0.015)) - 0.035
    wing = np.maximum(np.maximum(wing, -0.1 - canvas.back), 0.22 - np.abs(canvas.left))
    canvas.paint(wing, rng.uniform(300, 600) + 60 * canvas.texture, PELVIS)


def _spine_curve(rng: Rng) -> Curve:
    """Return where the middle of a vertebra lies (back, left) at each height."""
    bow, sway, phase = rng.uniform(0.02, 0.06), rng.uniform(-0.03, 0.03), rng.uniform(0, 6)
    return lambda up: (0.24 - bow * np.cos(2.2 * up + 0.6), sway * np.sin(2 * up + phase))


def _draw_vessels(canvas: Canvas, rng: Rng, medium: float, curve: Curve) -> None:
    """Aorta in front of the spine, to the left; vena cava to the right."""
    part = canvas.near((0.0, 0.0, 0.0), (9.0, 0.25, 0.3))
    row, column = curve(part.up)
    sway, phase = rng.uniform(0.01, 0.04), rng.uniform(0, 6)
    wave = sway * np.sin(2.5 * part.up + phase)
    row = row - rng.uniform(0.235, 0.25)
    cava = np.sqrt(((part.back - row + wave) / 0.8) ** 2 + (part.left - column + 0.13) ** 2)
    cava = np.maximum(cava - rng.uniform(0.07, 0.09), part.up - 0.35)
    part.paint(cava, 38 + rng.uniform(0.3, 0.7) * 130 * medium, VENA_CAVA)
    width = rng.uniform(0.075, 0.095) - 0.012 * np.tanh(-2 * part.up)
    aorta = np.sqrt((part.back - row - 0.02 + wave / 2) ** 2 + (part.left - column - 0.09 - wave) ** 2)
    aorta -= width
    part.paint(aorta - 0.02, -70)
    part.paint(aorta, rng.uniform(38, 50) + 190 * medium, AORTA)


def _draw_kidney(canvas: Canvas, rng: Rng, medium: float, side: float) -> None:
    """A bean in fat with its notch towards the midline; both sides come from one distribution."""
    centre, radii = vary(rng, (-0.22, 0.2, 0.4 * side), (0.26, 0.15, 0.145))
    part = canvas.near(centre, radii)
    notch = part.ellipsoid((centre[0], centre[1], centre[2] - 0.15 * side), (0.1, 0.08, 0.09))
    bean = np.maximum(part.ellipsoid(centre, radii, 0.02), 0.02 - part.wall)
    part.paint(bean - 0.04, -95 + 8 * part.texture)
    kidney = np.maximum(bean, -notch)
    hu = rng.uniform(28, 40)
    part.paint(kidney, hu + 130 * medium + 6 * part.texture, KIDNEYS[side])
    part.paint(np.maximum(kidney, bean + 0.06), hu + 70 * medium, KIDNEYS[side])


def _tube(canvas: Canvas, back: float, left: float, radius: float, *, bottom: float) -> Array:
    """Return the signed distance to an upright tube that starts at height ``bottom``."""
    distance: Array = np.sqrt((canvas.back - back) ** 2 + (canvas.left - left) ** 2) - radius
    distance = np.maximum(distance, bottom - canvas.up)
    return distance
