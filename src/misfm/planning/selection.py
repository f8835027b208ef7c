"""Which of many scans to label: few that stand for all, or few of which a network is least sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STARTS = 20
_ROUNDS = 100

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Pick:
    """A scan to label.

    Attributes:
        index: its place among the scans.
        stands_for: places of the scans that are nearer to it than to any other pick, itself first.
    """

    index: int
    stands_for: tuple[int, ...]


def standardise(features: Vectors) -> Vectors:
    """Bring each column of (N, F) to mean 0 and variance 1; one that is the same for all becomes 0."""
    deviations = features.std(axis=0)
    scale = np.where(deviations > 1e-9 * np.abs(features).max(axis=0, initial=0), deviations, np.inf)
    return np.asarray((features - features.mean(axis=0)) / scale, dtype=np.float64)


def representatives(vectors: Vectors, count: int, *, covered: Vectors | None = None) -> list[Pick]:
    """Pick scans that stand for all: those nearest to the centres of clusters (k-means), the largest first.

    Deterministic: the best of several starts that are drawn by a fixed seed.

    Args:
        vectors: (N, F), one a scan.
        count: to pick; all where there are no more.
        covered: (M, F), scans that are labelled already; each is a centre that stays where it is, so that
            picks lie where there is none.
    """
    if count >= len(vectors):
        return [Pick(i, (i,)) for i in range(len(vectors))]
    fixed = np.empty((0, vectors.shape[1])) if covered is None else covered
    generator = np.random.default_rng(0)
    found = [_cluster(vectors, fixed, _start(vectors, fixed, count, generator)) for _ in range(_STARTS)]
    _, centres = min(found, key=lambda one: one[0])
    chosen: list[int] = []
    for distances in _squared_distances(vectors, centres).T:
        order = distances.argsort(kind="stable").tolist()
        chosen.append(next(i for i in order if i not in chosen))
    nearest = _squared_distances(vectors, np.concatenate([fixed, vectors[chosen]])).argmin(axis=1)
    picks = [
        Pick(index, (index, *(int(i) for i in np.flatnonzero(nearest == len(fixed) + place) if i != index)))
        for place, index in enumerate(chosen)
    ]
    return sorted(picks, key=lambda pick: -len(pick.stands_for))


def least_sure(
    vectors: Vectors, quality: Sequence[float], count: int, *, covered: Vectors | None = None, pool: int = 4
) -> list[Pick]:
    """Pick scans of which a network is least sure and that differ: representatives of the worst few.

    Args:
        vectors: (N, F), one a scan.
        quality: N expected scores; the lowest are picked from.
        count: to pick.
        covered: (M, F), scans that are labelled already.
        pool: the worst ``pool * count`` scans are picked from.

    Returns:
        Picks in order of quality, the lowest first; they stand for others among the worst.
    """
    worst = np.argsort(np.asarray(quality), kind="stable")[: pool * count]
    picks = representatives(vectors[worst], count, covered=covered)
    in_all = [Pick(int(worst[pick.index]), tuple(int(worst[i]) for i in pick.stands_for)) for pick in picks]
    return sorted(in_all, key=lambda pick: quality[pick.index])


def _start(vectors: Vectors, fixed: Vectors, count: int, generator: np.random.Generator) -> Vectors:
    """Draw first centres, each the likelier the further it is from those before (k-means++)."""
    centres = fixed
    for _ in range(count):
        near = _squared_distances(vectors, centres).min(axis=1) if len(centres) else np.ones(len(vectors))
        total = near.sum()
        shares = near / total if total > 0 else None
        centres = np.concatenate([centres, vectors[[generator.choice(len(vectors), p=shares)]]])
    return centres[len(fixed) :]


def _cluster(vectors: Vectors, fixed: Vectors, centres: Vectors) -> tuple[float, Vectors]:
    """Move centres to the means of what is nearest to them (Lloyd); return the sum of squares, and them."""
    for _ in range(_ROUNDS):
        nearest = _squared_distances(vectors, np.concatenate([fixed, centres])).argmin(axis=1) - len(fixed)
        moved = np.stack(
            [
                vectors[nearest == i].mean(axis=0) if (nearest == i).any() else centre
                for i, centre in enumerate(centres)
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    distances = _squared_distances(vectors, np.concatenate([fixed, centres]))
    return float(distances.min(axis=1).sum()), centres


def _squared_distances(vectors: Vectors, centres: Vectors) -> Vectors:
    """Squared Euclidean distances (N, K)."""
    products = vectors @ centres.T
    squares = (vectors**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * products, 0), dtype=np.float64)
