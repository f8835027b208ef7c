"""Generated anatomy of a spine, which trunks and necks share."""

from __future__ import annotations

import numpy as np

from misfm.synthesis.canvas import Canvas, Curve, Rng
from misfm.synthesis.structures import BACK_MUSCLE, DISC, SPINAL_CORD, VERTEBRA


def draw_spine(canvas: Canvas, rng: Rng, curve: Curve) -> None:
    """Back muscles, vertebrae with discs, arch and processes, and the cord in its canal."""
    part = canvas.near((0.0, 0.4, 0.0), (9.0, 0.3, 0.45))
    row, column = curve(part.up)
    p, left = part.back - row, part.left - column
    radius = rng.uniform(0.125, 0.145)
    canal = radius + 0.06
    muscle = np.sqrt(((np.abs(left) - 0.17) / 1.2) ** 2 + (p - canal - 0.08) ** 2) - 0.12
    part.paint(muscle, rng.uniform(48, 60) + 12 * part.texture, BACK_MUSCLE)
    period = rng.uniform(0.22, 0.28)
    phase = part.up / period + rng.uniform()
    height = np.abs(phase - np.rint(phase)) * period  # from the middle of the nearest vertebra
    behind = p - canal
    ring = np.sqrt(left**2 + behind**2)
    arch = np.maximum(np.abs(ring - 0.1) - 0.03, height - 0.32 * period)
    spinous = np.maximum(np.abs(left) - 0.025, np.abs(behind - 0.14) - 0.08)
    spinous = np.maximum(spinous, height - 0.22 * period)
    transverse = np.sqrt((behind + 0.03) ** 2 + height**2) - 0.035
    transverse = np.maximum(transverse, np.abs(left) - 0.26)
    cortex = rng.uniform(450, 900)
    part.paint(np.minimum(np.minimum(arch, spinous), transverse), cortex, VERTEBRA)
    body = np.sqrt((left / 1.25) ** 2 + p**2) - radius
    part.paint(body, rng.uniform(70, 110), DISC)
    bone = np.maximum(body, height - 0.36 * period)
    part.paint(bone, cortex, VERTEBRA)
    part.paint(bone + 0.03, rng.uniform(150, 300) + 40 * part.texture, VERTEBRA)
    part.paint(ring - 0.085, rng.uniform(0, 20))
    part.paint(ring - rng.uniform(0.052, 0.065), rng.uniform(38, 55), SPINAL_CORD)
