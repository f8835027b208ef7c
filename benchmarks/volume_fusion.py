"""Seconds per Volume Fusion v2 sample, beside the authors' transforms (PyMIC) in the same run.

The task is the same for all: a 128x256x256 float32 volume in memory -> two random resized crops with flips,
contrast and gamma -> one fused 64x128x128 sample and its level map. Rounds are interleaved, so that whatever
else the machine does falls on all alike. PyMIC is timed as published and with its zoom on a 3-D array, which
gives the same numbers four times as fast; it runs in one process on one thread.

    git clone https://github.com/HiLab-git/PyMIC && python benchmarks/volume_fusion.py --pymic PyMIC

(or ``pip install PYMIC`` and leave ``--pymic`` out). Writes ``results/volume_fusion.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from misfm.augment.views import View, apply_view
from misfm.files import write_json, write_text
from misfm.pretext import Placement
from misfm.pretext.volume_fusion import VolumeFusionV2
from misfm.report.markdown import markdown_table
from misfm.seeding import generator_for
from misfm.training.memory import keep_freed_memory

VOLUME = (128, 256, 256)
PATCH_SIZE = (64, 128, 128)
HOW_TO_GET_PYMIC = (
    "PyMIC was not found. Either `git clone https://github.com/HiLab-git/PyMIC` and pass the folder with "
    "--pymic, or `pip install PYMIC`."
)


BUSY = (
    "The machine was busy with other work: trust the ratios and CPU times of single threads, and nothing of "
    "two threads, which wait for each other"
)
IDLE = "The machine was otherwise idle"


class Absent(ModuleType):
    """Stands in for a package that PyMIC imports but the two transforms do not use (imops, h5py, …)."""

    def __getattr__(self, name: str) -> Any:
        """Return a class of any name, dunders excepted."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_pymic(path: Path | None) -> tuple[ModuleType, list[str]]:
    """Return PyMIC's module of Volume Fusion transforms and the names of the packages stood in for."""
    if path is not None:
        sys.path.insert(0, str(path))
    absent: list[str] = []
    while True:
        try:
            return importlib.import_module("pymic.transform.crop4vf"), absent
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "pymic":
                raise SystemExit(HOW_TO_GET_PYMIC) from error
            absent.append(error.name)
            sys.modules[error.name] = Absent(error.name)


def zoom_as_published(image: Any, scale: list[float], order: int) -> Any:
    return scipy.ndimage.zoom(image, scale, order=order)


def zoom_in_3d(image: Any, scale: list[float], order: int) -> Any:
    return scipy.ndimage.zoom(image[0], scale[1:], order=order)[None]


def pymic_batch(crop4vf: ModuleType, zoom: Callable[..., Any], volume: Tensor, size: int, seed: int) -> None:
    random.seed(seed)
    # Newer SciPy has no `ndimage.interpolation`, which PyMIC calls.
    crop4vf.ndimage = SimpleNamespace(interpolation=SimpleNamespace(zoom=zoom))  # type: ignore[attr-defined]
    params = {"task": None, "crop4volumefusion_output_size": list(PATCH_SIZE)}
    crop, fusion = crop4vf.Crop4VolumeFusion(params), crop4vf.VolumeFusion(params)
    for _ in range(size):
        fusion(crop({"image": volume.numpy()}))


def misfm_batch(volume: Tensor, size: int, threads: int, seed: int) -> None:
    torch.set_num_threads(threads)
    patches = volume.expand(size, 2, *volume.shape)
    placement = Placement.whole(size, 2, volume.shape[1:])
    VolumeFusionV2().prepare(patches, placement, PATCH_SIZE, generator_for(seed))


def ct_like(seed: int = 0) -> Tensor:
    """Return (1, *VOLUME) in [-1, 1]: smooth shapes, grain, and a third of air clipped to one value."""
    generator = generator_for(seed)
    coarse = torch.randn((1, 1, 16, 32, 32), generator=generator)
    shapes = F.interpolate(coarse, size=VOLUME, mode="trilinear", align_corners=True)[0]
    grain = torch.randn((1, *VOLUME), generator=generator)
    return (0.5 * shapes + 0.05 * grain + 0.2).sub_(0.4).clamp_(min=-0.4) / 2


def largest_difference(crop4vf: ModuleType, volume: Tensor) -> float:
    """Largest difference of intensities between PyMIC's chain and ours on one crop with the same draws."""
    view = View(start=(5, 20, 30), size=(70, 141, 120), flips=(-1,), percentiles=(0.9, 99.1), gamma=1.3)
    d, h, w = (slice(start, start + size) for start, size in zip(view.start, view.size, strict=True))
    scale = [1.0] + [side / size for side, size in zip(PATCH_SIZE, view.size, strict=True)]
    crop = np.flip(zoom_as_published(volume[:, d, h, w].numpy(), scale, 1), view.flips)
    stretched = crop4vf.adaptive_contrast_adjust(crop, *view.percentiles)
    expected = crop4vf.gamma_correction(stretched, view.gamma, view.gamma)
    return float(np.abs(apply_view(volume, view, PATCH_SIZE).numpy() - expected).max())


def copy_bandwidth(threads: int) -> float:
    """Bytes read and written per second when copying an array much larger than the caches, the best of 7."""
    torch.set_num_threads(threads)
    source = torch.ones(64 * 2**20)
    target = torch.zeros_like(source)
    return 2 * 4 * source.numel() / min(seconds(lambda: target.copy_(source)) for _ in range(7))


def compulsory_bytes() -> float:
    """Read two crops of the mean size once, write the fused sample (float32) and levels (one byte) once."""
    mean_scale = statistics.mean(VolumeFusionV2().views.scale)
    voxels = math.prod(PATCH_SIZE)
    return 2 * 4 * voxels * mean_scale**3 + 4 * voxels + voxels


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def measure(crop4vf: ModuleType, args: argparse.Namespace) -> dict[str, Any]:
    volume, size = ct_like(), args.batch_size
    variants: dict[str, Callable[[int], None]] = {}
    for threads in args.threads:
        name = f"misfm, {threads} thread{'s' if threads > 1 else ''}"
        variants[name] = partial(misfm_batch, volume, size, threads)
    variants["PyMIC as published"] = partial(pymic_batch, crop4vf, zoom_as_published, volume, size)
    variants["PyMIC, zoom in 3-D"] = partial(pymic_batch, crop4vf, zoom_in_3d, volume, size)
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(-1, args.rounds):
        for name, run in variants.items():
            start_wall, start_cpu = time.perf_counter(), time.process_time()
            run(round_)
            if round_ >= 0:  # the one before warms up
                wall[name].append(round(1000 * (time.perf_counter() - start_wall) / size, 1))
                cpu[name].append(round(1000 * (time.process_time() - start_cpu) / size, 1))
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
    return {
        name: {
            "median_ms": statistics.median(wall[name]),
            "all_ms": wall[name],
            "cpu_median_ms": statistics.median(cpu[name]),
        }
        for name in variants
    }


def table(results: dict[str, Any]) -> str:
    info, times = results["machine"], results["ms_per_sample"]
    published, in_3d = times["PyMIC as published"], times["PyMIC, zoom in 3-D"]
    heads = ("One 64x128x128 sample", "ms", "range", "PyMIC / this", "PyMIC in 3-D / this", "CPU ms")
    rows = []
    for name, row in times.items():
        ratios = [f"{other['median_ms'] / row['median_ms']:.1f}" for other in (published, in_3d)]
        spread = f"{min(row['all_ms']):.1f}-{max(row['all_ms']):.1f}"
        rows.append((name, f"{row['median_ms']:.1f}", spread, *ratios, f"{row['cpu_median_ms']:.1f}"))
    lines = markdown_table(heads, rows)
    floor = results["floor"]
    lines += [
        "",
        f"Volume Fusion v2, medians of {results['rounds']} interleaved rounds of batch "
        f"{results['batch_size']}; PyMIC runs on one thread. Largest difference of intensities on "
        f"the same crop and draws: {results['largest_difference']:.0e}.",
        f"Floor: {floor['compulsory_mb']:.1f} MB must be read or written per sample (two mean crops, the "
        f"sample, one byte a level); copying runs at {floor['copy_gb_per_s']:.1f} GB/s on one thread, so "
        f"{floor['ms']:.2f} ms.",
        f"{info['cpu']} ({info['capability']}), {info['logical_cores']} logical cores, "
        f"torch {info['torch']}, numpy {info['numpy']}, scipy {info['scipy']}; "
        f"PyMIC {results['pymic']['version']}. {BUSY if results['busy'] else IDLE} "
        f"(load average {info['load_average_at_start']}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time Volume Fusion beside PyMIC's transforms.")
    parser.add_argument("--pymic", type=Path, help="folder of a PyMIC checkout (default: the installed one)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least 7 to report")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    info = machine()
    kept = keep_freed_memory()  # as training does; process-wide, so PyMIC gains as well
    crop4vf, absent = import_pymic(args.pymic)
    bandwidth, compulsory = copy_bandwidth(1), compulsory_bytes()
    results = {
        "machine": info,
        "busy": info["load_average_at_start"] > 1,
        "pymic": {"version": sys.modules["pymic"].__version__, "stand_ins": absent},
        "rounds": args.rounds,
        "batch_size": args.batch_size,
        "freed_memory_kept": kept,
        "largest_difference": largest_difference(crop4vf, ct_like()),
        "floor": {
            "compulsory_mb": round(compulsory / 1e6, 2),
            "copy_gb_per_s": round(bandwidth / 1e9, 1),
            "ms": round(1000 * compulsory / bandwidth, 2),
        },
        "ms_per_sample": measure(crop4vf, args),
    }
    write_json(args.out / "volume_fusion.json", results)
    write_text(args.out / "volume_fusion.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
