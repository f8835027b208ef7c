"""Peak memory of predicting a 400x512x512 CT with 5 classes; prints one JSON object.

The network is a stand-in that costs next to nothing, so the figure is that of everything around it: scan,
preparation, sliding window, interpolation back, label map. Every case runs in a process of its own.

    python benchmarks/predict_memory.py
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn

from misfm.data.intensity import IntensityRule
from misfm.inference.predictor import PredictionSpec, Predictor
from misfm.settings import Spacing
from misfm.volume import Volume

SHAPE = (400, 512, 512)
PATCH_SIZE = (64, 128, 128)
CASES: dict[str, Spacing | None] = {
    "native": None,
    "resampled_to_coarser": (1.5, 1.5, 1.5),
    "resampled_to_finer": (0.9, 0.7, 0.7),
}
LIMIT_GIB = 6.0


class Bands(nn.Module):
    """Five classes by intensity."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5, D, H, W) of normalised voxels (B, 1, D, H, W)."""
        return torch.cat([-((x - centre) ** 2) for centre in (-1.0, -0.5, 0.0, 0.5, 1.0)], dim=1)


def measure(spacing: Spacing | None) -> dict[str, float]:
    generator = np.random.default_rng(0)
    # Tissue up to the border, so that cropping to the patient saves nothing.
    voxels = generator.integers(-300, 700, (1, *SHAPE), np.int16)
    affine = np.array([[0, 0, 0.8, 0], [0, 0.8, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    spec = PredictionSpec(
        patch_size=PATCH_SIZE, spacing=spacing, rules=(IntensityRule(kind="ct"),), num_classes=5
    )
    start = time.perf_counter()
    label_map = Predictor(Bands(), spec).predict(Volume(voxels, affine))
    seconds = time.perf_counter() - start
    if label_map.shape != SHAPE:
        raise RuntimeError(f"expected labels on {SHAPE}, got {label_map.shape}")
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_gib": round(peak / 2**30, 2), "seconds": round(seconds, 1)}


def main() -> None:
    context = multiprocessing.get_context("spawn")
    results = {}
    for name, spacing in CASES.items():
        with context.Pool(1) as pool:
            results[name] = pool.apply(measure, (spacing,))
    print(json.dumps({"shape": SHAPE, "patch_size": PATCH_SIZE, "limit_gib": LIMIT_GIB, "cases": results}))
    if any(case["peak_gib"] > LIMIT_GIB for case in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
