"""What generated anatomy is painted on: implicit surfaces that cover each other.

Structures are signed distances in patient coordinates (up, back, left), in units of half the width of the
trunk, from its centre, or of the head, from the foramen magnum. The coordinates bend smoothly at random, so
one short description yields ever other anatomy. Each structure covers what lies there already, with an edge
about one voxel wide: partial volume without supersampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.volume import FloatTriple, Shape

Array = NDArray[np.floating[Any]]
Rng = np.random.Generator
Curve = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Canvas:
    """A scan in the making, or a view of a part of it.

    Attributes:
        image: HU, float32 (D, H, W).
        label: label values, same shape.
        up, back, left: patient coordinates of every voxel.
        texture, wobble: smooth random fields of unit variance: inside of organs, and their outlines.
        wall: distance below the inner side of the body wall, of a head below the fat under the skin;
            negative in and outside of it.
        edge: width of a blurred border.
        first, spacing: coordinates of the first voxel, and their change from voxel to voxel along (D, H, W),
            tilt and deformation left out.
    """

    image: Array
    label: NDArray[np.uint8]
    up: Array
    back: Array
    left: Array
    texture: Array
    wobble: Array
    wall: Array
    edge: float
    first: FloatTriple
    spacing: FloatTriple

    def near(self, centre: FloatTriple, radii: FloatTriple) -> Canvas:
        """Return the part that an ellipsoid can reach, sharing memory; the margin covers bending and
        the tilt of what is near."""
        box = tuple(
            slice(max(0, int((c - r - 0.3 - a) / b)), max(1, math.ceil((c + r + 0.3 - a) / b)))
            for c, r, a, b in zip(centre, radii, self.first, self.spacing, strict=True)
        )
        fields = ("image", "label", "up", "back", "left", "texture", "wobble", "wall")
        return replace(self, **{name: getattr(self, name)[box] for name in fields})

    def ellipsoid(self, centre: FloatTriple, radii: FloatTriple, wobble: float = 0.0) -> Array:
        """Return the signed distance to an ellipsoid, negative inside, its outline moved by ``wobble``."""
        scaled = [(x - c) / r for x, c, r in zip((self.up, self.back, self.left), centre, radii, strict=True)]
        inner: Array = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        a, b, c = (x / r for x, r in zip(scaled, radii, strict=True))
        slope: Array = np.sqrt(a**2 + b**2 + c**2)
        # The implicit function over its slope: a distance to first order, exact on the surface.
        distance: Array = inner * (inner - 1) / (slope + 1e-6) + wobble * self.wobble
        return distance

    def paint(self, distance: Array, hu: float | Array, label: int = 0) -> None:
        """Fill where the signed distance is negative; an unlabelled structure also covers labels."""
        share = np.clip(0.5 - distance / self.edge, 0, 1)
        self.image[:] += share * (hu - self.image)
        self.label[share > 0.5] = label


def smooth_field(shape: Shape, nodes: int, rng: Rng) -> Array:
    """Return a Gaussian random field (D, H, W) of unit variance that varies over 1/nodes of each side."""
    field: Array = rng.standard_normal((nodes + 2,) * 3, np.float32)
    for side in shape:
        places = np.linspace(0.5, nodes + 0.5, side, dtype=np.float32)
        basis = np.exp(-(((places[:, None] - np.arange(nodes + 2, dtype=np.float32)) / 0.75) ** 2))
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        field = np.tensordot(field, basis, (0, 1))
    return field


def vary(rng: Rng, centre: FloatTriple, radii: FloatTriple) -> tuple[FloatTriple, FloatTriple]:
    """Shift and resize an ellipsoid as organs of other people differ."""
    a, b, c = (float(x) for x in np.array(centre) + rng.normal(0, 0.025, 3))
    d, e, f = (float(x) for x in np.array(radii) * rng.uniform(0.85, 1.15) * rng.uniform(0.9, 1.1, 3))
    return (a, b, c), (d, e, f)
