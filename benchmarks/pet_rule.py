"""What network input becomes of PET under several rules, with the bladder in the field of view and without.

    python benchmarks/pet_rule.py

A generated body of uptake 1 (in SUV, times 1000 as counts would have it), a lesion of 8 in one voxel of 2000,
and a bladder of 60 in one of 100. A rule serves a network if the lesion differs from the body and from the
bladder, and is the same whether the bladder is in the field of view or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misfm.data.intensity import IntensityRule, content_mask, fit
from misfm.volume import Volume

COUNTS = 1000.0
LESION, BLADDER = 8.0, 60.0
SHAPE = (60, 80, 80)


def body(*, bladder: bool) -> tuple[Volume, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return PET, and masks of its body, its lesion and its bladder."""
    generator = np.random.default_rng(0)
    grid = np.indices(SHAPE) / np.array(SHAPE).reshape(3, 1, 1, 1) - 0.5
    inside = (grid**2).sum(0) < 0.4**2
    volume = inside.mean()
    radius = [(volume * share * 0.75 / np.pi) ** (1 / 3) for share in (1 / 2000, 1 / 100)]
    lesion = ((grid - np.reshape([0.1, 0.1, 0.1], (3, 1, 1, 1))) ** 2).sum(0) < radius[0] ** 2
    hot = ((grid - np.reshape([-0.2, 0, 0], (3, 1, 1, 1))) ** 2).sum(0) < radius[1] ** 2
    uptake = np.where(inside, generator.gamma(6, 1 / 6, SHAPE), generator.gamma(1, 0.02, SHAPE))
    uptake[lesion] = LESION
    if bladder:
        uptake[hot] = BLADDER
    image = Volume((uptake * COUNTS).astype(np.float32)[None], np.diag([4.0, 4.0, 4.0, 1.0]))
    return image, inside & ~lesion & ~hot, lesion, hot


def z_score(image: Volume) -> NDArray[np.float32]:
    """Return voxels as nnU-Net z-scores them, over the content."""
    values = image.data[0][content_mask(image, "pet")]
    return (image.data[0] - values.mean()) / values.std()


def main() -> None:
    """Print the input of body, lesion and bladder under each rule."""
    print(f"{'rule':24}{'bladder':10}{'body':>8}{'lesion':>8}{'bladder':>9}")
    for name in ("percentiles (mr)", "z-score (nnU-Net)", "pet"):
        for bladder in (False, True):
            image, inside, lesion, hot = body(bladder=bladder)
            if name.startswith("z"):
                voxels = z_score(image)
            else:
                voxels = fit(IntensityRule(kind="pet" if name == "pet" else "mr"), image).apply(image.data)[0]
            values = [float(np.median(voxels[mask])) for mask in (inside, lesion)]
            last = f"{np.median(voxels[hot]):9.2f}" if bladder else f"{'-':>9}"
            print(f"{name:24}{'in' if bladder else 'out':10}{values[0]:8.2f}{values[1]:8.2f}{last}")


if __name__ == "__main__":
    main()
