"""Generated anatomy of a head and neck; one unit is half the head's width, height 0 the foramen magnum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from misfm.synthesis.canvas import Array, Canvas, Curve, Rng, vary
from misfm.synthesis.spine import draw_spine
from misfm.synthesis.structures import (
    BACK_MUSCLE,
    BRAIN,
    BRAINSTEM,
    CAROTID,
    CEREBELLUM,
    CHEWING_MUSCLES,
    EYES,
    FAT,
    JAW,
    LARYNX,
    LEFT,
    LUNGS,
    NECK_MUSCLES,
    OESOPHAGUS,
    PAROTIDS,
    PHARYNX,
    RIGHT,
    SHOULDER,
    SKULL,
    SUBMANDIBULARS,
    THYROID,
    TONGUE,
    UPPER_JAW,
)
from misfm.volume import FloatTriple

SIDES = (LEFT, RIGHT)


def draw(canvas: Canvas, rng: Rng, medium: float) -> None:
    """Draw a head and neck; ``medium`` is the contrast medium, 0 none to 1 arterial."""
    curve = _neck_curve(rng)
    canvas = _draw_outline(canvas, rng, curve)
    _draw_shoulders(canvas, rng, curve)
    _draw_neck_muscles(canvas, rng, curve)
    draw_spine(canvas, rng, curve)
    _draw_throat(canvas, rng, curve, medium)
    _draw_skull(canvas, rng, curve)
    _draw_face(canvas, rng)
    _draw_jaw(canvas, rng, medium)


def _neck_curve(rng: Rng) -> Curve:
    """Return where the middle of a vertebra lies (back, left) at each height: the neck leans
    forward from the shoulders."""
    lean, bow, sway = rng.uniform(0.1, 0.4), rng.uniform(0.0, 0.08), rng.uniform(-0.06, 0.06)
    return lambda up: (0.08 - lean * np.minimum(up, 0.3) - bow * np.sin(1.6 * up), sway * up)


def _draw_outline(canvas: Canvas, rng: Rng, curve: Curve) -> Canvas:
    """Skin and the fat under it around cranium, face, neck and shoulders."""
    row, column = curve(canvas.up)
    widening = 1 / (1 + np.exp((canvas.up + rng.uniform(1.8, 2.3)) / rng.uniform(0.1, 0.2)))
    width = rng.uniform(0.7, 0.85) + rng.uniform(1.6, 2.2) * widening
    depth = rng.uniform(0.7, 0.85) + rng.uniform(0.15, 0.4) * widening
    around = np.sqrt(((canvas.left - column) / width) ** 2 + ((canvas.back - row + 0.05) / depth) ** 2)
    neck = np.maximum((around - 1) * np.minimum(width, depth), canvas.up - 0.2)
    body = np.minimum(canvas.ellipsoid((0.85, 0.05, 0.0), (1.0, 1.25, 1.0)), neck)
    for centre, radii in (((0.0, -0.52, 0.0), (0.98, 0.85, 0.84)), ((-0.25, -0.12, 0.0), (0.8, 0.82, 0.97))):
        body = np.minimum(body, canvas.ellipsoid(*vary(rng, centre, radii), 0.03))
    fat = rng.uniform(0.03, 0.14) * (1 + 0.3 * canvas.wobble)
    canvas.paint(body, 20, FAT)
    canvas.paint(body + 0.03, -100 + 10 * canvas.texture, FAT)
    wall = -body - fat
    canvas.paint(-wall, rng.uniform(-90, -40) + 25 * canvas.texture)
    return replace(canvas, wall=wall)


def _draw_shoulders(canvas: Canvas, rng: Rng, curve: Curve) -> None:
    """Muscle, tops of the lungs, collar bones and heads of the upper arms."""
    row, _ = curve(canvas.up)
    top = rng.uniform(-2.5, -2.1)
    muscle = np.maximum(-canvas.wall, canvas.up - top + 0.45 * np.abs(canvas.left) - 0.5)
    canvas.paint(muscle, rng.uniform(45, 60) + 25 * canvas.texture, SHOULDER)
    for side in SIDES:
        p = canvas.back - row + 0.1
        apex = ((canvas.up - top + 1.0) / 1.05) ** 2 + (p / 0.55) ** 2
        apex = (np.sqrt(apex + ((canvas.left - 0.55 * side) / 0.42) ** 2) - 1) * 0.42
        lung = np.maximum(apex, 0.1 - canvas.wall)
        canvas.paint(lung, rng.uniform(-880, -780) + 45 * canvas.texture, LUNGS[side])
        bone = rng.uniform(350, 800)
        clavicle = _rod(canvas, (top, -0.45, 0.2 * side), (top + 0.35, -0.1, 1.7 * side), 0.09, 0.09)
        arm = canvas.ellipsoid((top + 0.1, 0.1, 2.05 * side), (0.32, 0.3, 0.3))
        bones = np.maximum(np.minimum(clavicle, arm), 0.02 - canvas.wall)
        canvas.paint(bones, bone, SHOULDER)
        canvas.paint(bones + 0.05, 200 + 40 * canvas.texture, SHOULDER)


def _draw_neck_muscles(canvas: Canvas, rng: Rng, curve: Curve) -> None:
    """Muscles behind the spine, and those from behind the ears to the breast bone."""
    row, column = curve(canvas.up)
    behind = ((canvas.back - row - 0.42) / rng.uniform(0.36, 0.44)) ** 2
    behind = (np.sqrt(behind + ((canvas.left - column) / rng.uniform(0.55, 0.7)) ** 2) - 1) * 0.4
    behind = np.maximum(np.maximum(behind, canvas.up + 0.02), 0.02 - canvas.wall)
    canvas.paint(behind, rng.uniform(48, 62) + 25 * canvas.texture, BACK_MUSCLE)
    low_row, _ = curve(np.array(-2.2, np.float32))
    for side in SIDES:
        start, end = (-0.1, 0.22, 0.68 * side), (-2.2, float(low_row) - 0.6, 0.14 * side)
        muscle = np.maximum(_rod(canvas, start, end, 0.13, 0.17), 0.01 - canvas.wall)
        canvas.paint(muscle, rng.uniform(50, 62) + 10 * canvas.texture, NECK_MUSCLES[side])


def _draw_throat(canvas: Canvas, rng: Rng, curve: Curve, medium: float) -> None:
    """Gullet, windpipe, larynx, thyroid, throat and the vessels beside them."""
    row, column = curve(canvas.up)
    p, left, up = canvas.back - row, canvas.left - column, canvas.up
    larynx_top = rng.uniform(-1.35, -1.1)
    thyroid_top = larynx_top - rng.uniform(0.4, 0.6)
    for side in SIDES:
        for back, radius, share in ((-0.2, 0.055, 1.0), (-0.14, 0.085, rng.uniform(0.3, 0.9))):
            vessel = np.sqrt((p - back) ** 2 + (left - (0.3 + 0.5 * (back + 0.24)) * side) ** 2)
            vessel = np.maximum(vessel - radius * rng.uniform(0.8, 1.25), up + 0.1)
            canvas.paint(vessel, rng.uniform(35, 48) + 180 * share * medium, CAROTID)
    gullet = np.sqrt((p + 0.2) ** 2 + ((left - 0.03) / 1.4) ** 2) - 0.06
    canvas.paint(np.maximum(gullet, up - larynx_top + 0.4), rng.uniform(25, 45), OESOPHAGUS)
    wall = np.sqrt(((p + 0.29) / 0.8) ** 2 + (left / 1.3) ** 2) - rng.uniform(0.17, 0.21)
    canvas.paint(np.maximum(np.maximum(wall, larynx_top - 0.1 - up), up - 0.1), rng.uniform(45, 65), PHARYNX)
    for side in SIDES:
        lobe = np.sqrt(((up - thyroid_top + 0.3) / 2.2) ** 2 + (p + 0.36) ** 2 + (left - 0.2 * side) ** 2)
        canvas.paint(lobe - rng.uniform(0.1, 0.15), rng.uniform(80, 130) + 80 * medium, THYROID)
    box = np.sqrt(((p + 0.42) / 1.1) ** 2 + left**2)
    box = np.maximum(np.maximum(box - 0.27, up - larynx_top), thyroid_top + 0.1 - up)
    canvas.paint(box, rng.uniform(40, 60) + 15 * canvas.texture, LARYNX)
    shell = np.maximum(np.abs(box + 0.04) - 0.03, p + 0.38)
    canvas.paint(shell, rng.uniform(80, 400) + 80 * canvas.texture, LARYNX)
    air = np.sqrt(((p + 0.42) / 1.2) ** 2 + left**2) - rng.uniform(0.09, 0.13)
    canvas.paint(np.maximum(air - 0.035, up - thyroid_top), 60)
    narrow = 0.05 * np.exp(-(((up - larynx_top + 0.25) / 0.12) ** 2))
    canvas.paint(np.maximum(air + narrow, up - larynx_top), -990)
    throat = np.sqrt(((p + 0.33) / rng.uniform(0.5, 1.0)) ** 2 + (left / 1.4) ** 2) - rng.uniform(0.06, 0.13)
    canvas.paint(np.maximum(np.maximum(throat, up - 0.08), larynx_top - 0.1 - up), -990)


def _draw_skull(canvas: Canvas, rng: Rng, curve: Curve) -> None:
    """Vault and base, bone behind the ears with its air cells, brain, cerebellum and brain stem."""
    up, back, left = canvas.up, canvas.back, canvas.left
    outer = canvas.ellipsoid((0.85, 0.05, 0.0), (0.92, 1.17, 0.92))
    thickness = rng.uniform(0.06, 0.11)
    floor = 0.05 + rng.uniform(0.35, 0.5) / (1 + np.exp((back + rng.uniform(0.15, 0.35)) / 0.1))
    cavity = np.maximum(outer + thickness, floor - up + 0.03 * canvas.wobble)
    bone = np.maximum(outer, floor - 0.1 - up)
    cortex = rng.uniform(600, 1200)
    for side in SIDES:
        petrous = canvas.ellipsoid((0.12, 0.02, 0.42 * side), (0.15, 0.15, 0.36), 0.02)
        mastoid = _mastoid(canvas, side, 0.02)
        mastoid = np.maximum(mastoid, 0.02 - canvas.wall)
        bone = np.minimum(bone, np.minimum(petrous, mastoid))
        cavity = np.maximum(cavity, -petrous)
    canvas.paint(bone, cortex + 100 * canvas.texture, SKULL)
    cells = np.maximum(bone + 0.05, np.maximum(np.abs(up) - 0.25, 0.6 - np.abs(left)))
    canvas.paint(np.maximum(cells, 0.05 - 0.1 * canvas.texture), -500, SKULL)
    canvas.paint(cavity, 8, BRAIN)
    fold = 0.03 + 0.02 * np.abs(canvas.wobble)
    canvas.paint(cavity + fold, rng.uniform(28, 40) + 4 * canvas.texture, BRAIN)
    ventricle = canvas.ellipsoid((0.95, 0.0, 0.0), (0.15, 0.5, 0.14), 0.03)
    canvas.paint(ventricle, rng.uniform(4, 12), BRAIN)
    centre, radii = vary(rng, (0.25, 0.6, 0.0), (0.33, 0.36, 0.6))
    cerebellum = np.maximum(canvas.ellipsoid(centre, radii, 0.02), cavity + 0.04)
    canvas.paint(cerebellum - 0.03, 8)
    canvas.paint(cerebellum, rng.uniform(30, 42) + 4 * canvas.texture, CEREBELLUM)
    row, column = (float(value) for value in curve(np.array(0.0, np.float32)))
    low, high = (-0.04, row + 0.2, column), (rng.uniform(0.55, 0.75), rng.uniform(-0.08, 0.08), 0.0)
    stem = _rod(canvas, low, high, rng.uniform(0.08, 0.11), rng.uniform(0.17, 0.22))
    stem = np.maximum(np.maximum(stem, up - high[0]), low[0] - up)
    pons = canvas.ellipsoid((0.32, 0.06, 0.0), (0.18, 0.17, rng.uniform(0.2, 0.26)))
    stem = np.minimum(stem, np.maximum(pons, cavity))
    canvas.paint(stem - 0.05, 8)
    canvas.paint(stem, rng.uniform(28, 40) + 3 * canvas.texture, BRAINSTEM)


def _draw_face(canvas: Canvas, rng: Rng) -> None:
    """Eyes, upper jaw with its sinuses, nose and tongue."""
    for side in SIDES:
        orbit = canvas.ellipsoid((0.25, -0.82, 0.4 * side), (0.24, 0.34, 0.25))
        canvas.paint(np.maximum(orbit - 0.05, 0.02 - canvas.wall), rng.uniform(400, 900), SKULL)
        canvas.paint(np.maximum(orbit, -canvas.wall), -85)
        cheek = _rod(canvas, (0.0, -0.85, 0.6 * side), (0.08, -0.1, 0.82 * side), 0.08, 0.06)
        canvas.paint(np.maximum(cheek, -canvas.wall), rng.uniform(500, 1000), SKULL)
    jaw = np.maximum(canvas.ellipsoid((-0.08, -0.82, 0.0), (0.28, 0.42, 0.5), 0.03), 0.02 - canvas.wall)
    canvas.paint(jaw, rng.uniform(200, 700) + 150 * canvas.texture, UPPER_JAW)
    for side in SIDES:
        sinus = canvas.ellipsoid((0.0, -0.8, 0.3 * side), (0.2, 0.25, 0.16), 0.03)
        canvas.paint(sinus, -980 if rng.uniform() < 0.8 else 30)
        eye = canvas.ellipsoid((0.27, -0.97, 0.4 * side), (0.16, 0.16, 0.16))
        canvas.paint(eye, rng.uniform(5, 30), EYES[side])
    nose = canvas.ellipsoid((0.02, -0.75, 0.0), (0.28, 0.7, 0.12), 0.03)
    nose = np.maximum(np.maximum(nose, canvas.back + 0.2), 0.015 - np.abs(canvas.left))
    canvas.paint(np.maximum(nose, 0.05 - canvas.wall), np.where(canvas.texture > 0.8, 40, -980))
    centre, radii = vary(rng, (-0.5, -0.62, 0.0), (0.3, 0.42, 0.36))
    tongue = canvas.ellipsoid(centre, radii, 0.03)
    canvas.paint(tongue, rng.uniform(45, 70) + 25 * canvas.texture, TONGUE)
    if rng.uniform() < 0.5:
        gap = canvas.ellipsoid((centre[0] + radii[0], -0.6, 0.0), (0.05, 0.35, 0.25), 0.02)
        canvas.paint(gap, -980)


def _draw_jaw(canvas: Canvas, rng: Rng, medium: float) -> None:
    """Lower jaw, teeth, chewing muscles and the salivary glands; both sides come from one distribution."""
    drop = rng.uniform(-0.05, 0.1)
    half = rng.uniform(0.5, 0.62)
    length = rng.uniform(0.68, 0.84)
    around = np.sqrt((canvas.left / half) ** 2 + ((canvas.back + 0.25) / length) ** 2)
    ring = np.abs((around - 1) * (half + length) / 2) - rng.uniform(0.06, 0.09)
    height = canvas.up + 0.72 + drop - 0.3 * (canvas.back + 0.25 + length)
    arch = np.maximum(np.maximum(ring, canvas.back + 0.2), np.abs(height) - rng.uniform(0.15, 0.2))
    teeth = np.maximum(np.maximum(ring - 0.01, canvas.back + 0.45), np.abs(height - 0.3) - 0.14)
    ramus = [
        canvas.ellipsoid((-0.28 - drop / 2, -0.22, (half + 0.03) * side), (0.45, 0.2, 0.07), 0.01)
        for side in SIDES
    ]
    jaw = np.maximum(np.minimum(arch, np.minimum(*ramus)), -canvas.wall)
    for side in SIDES:
        for centre, radii in (
            ((-0.38, -0.32, (half + 0.13) * side), (0.38, 0.22, 0.11)),
            ((-0.3, -0.25, (half - 0.12) * side), (0.34, 0.2, 0.11)),
        ):
            centre, radii = vary(rng, centre, radii)
            muscle = np.maximum(canvas.ellipsoid(centre, radii, 0.01), 0.01 - canvas.wall)
            canvas.paint(muscle, rng.uniform(48, 65) + 8 * canvas.texture, CHEWING_MUSCLES[side])
    if rng.uniform() < 0.8:
        gaps = np.sin(rng.uniform(18, 26) * canvas.left / half) * 200
        canvas.paint(teeth, rng.uniform(1200, 2200) + gaps, UPPER_JAW)
    cortex = rng.uniform(700, 1300)
    canvas.paint(jaw, cortex, JAW)
    canvas.paint(jaw + 0.045, rng.uniform(150, 500) + 80 * canvas.texture, JAW)
    _draw_salivary_glands(canvas, rng, medium, jaw, half, drop)


def _draw_salivary_glands(
    canvas: Canvas, rng: Rng, medium: float, jaw: Array, half: float, drop: float
) -> None:
    fatty = rng.uniform(-40, 25) + 50 * medium
    firm = rng.uniform(35, 55) + 50 * medium
    for side in SIDES:
        centre, radii = vary(rng, (-0.22, 0.03, (half + 0.12) * side), (0.36, 0.27, 0.19))
        gland = canvas.ellipsoid(centre, radii, 0.03)
        deep = canvas.ellipsoid((centre[0], centre[1] - 0.03, (half - 0.06) * side), (0.2, 0.12, 0.16), 0.02)
        gland = np.maximum(np.minimum(gland, deep), 0.005 - canvas.wall)
        gland = np.maximum(gland, 0.015 - jaw)
        gland = np.maximum(gland, 0.015 - _mastoid(canvas, side))
        canvas.paint(gland, fatty + 15 * canvas.texture, PAROTIDS[side])
        centre, radii = vary(rng, (-0.82 - drop, -0.35, 0.4 * side), (0.2, 0.22, 0.13))
        gland = np.maximum(canvas.ellipsoid(centre, radii, 0.02), 0.015 - jaw)
        canvas.paint(gland, firm + 10 * canvas.texture, SUBMANDIBULARS[side])


def _mastoid(canvas: Canvas, side: float, wobble: float = 0.0) -> Array:
    """Return the signed distance to the bone behind an ear."""
    return canvas.ellipsoid((-0.02, 0.25, 0.68 * side), (0.28, 0.22, 0.17), wobble)


def _rod(canvas: Canvas, start: FloatTriple, end: FloatTriple, first: float, last: float) -> Array:
    """Return the signed distance to a round rod whose radius goes from ``first`` to ``last``."""
    axis = np.array(end) - start
    offsets = [x - x0 for x, x0 in zip((canvas.up, canvas.back, canvas.left), start, strict=True)]
    along: Array = np.add.reduce([x * float(d) for x, d in zip(offsets, axis / (axis @ axis), strict=True)])
    along = np.clip(along, 0, 1)
    squared: Array = np.add.reduce([(x - along * float(d)) ** 2 for x, d in zip(offsets, axis, strict=True)])
    distance: Array = np.sqrt(squared) - (first + along * (last - first))
    return distance
