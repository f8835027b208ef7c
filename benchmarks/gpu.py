"""What a GPU makes of it: samples/s, how busy it is, what waits for it, memory beside the plan, peers.

    python benchmarks/gpu.py [--store phantom:16] [--recipes misfm,mis-fm-2023] [--published MIS-FM]

Trains each recipe as `misfm pretrain` does, as it is, with `training.compile`, with `training.channels_last`
and without workers; figures of a step are the difference between a longer and a shorter training, so that
starting costs nothing. `--published` is a clone of https://github.com/openmedlab/MIS-FM, whose PCT-Net is
timed beside ours. Writes `results/gpu_*.json`, one JSON line each; without a GPU says so and ends.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from math import prod
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from measure import alternate, has_gpu, kept, machine, report, rounded, skipped

PARTS = ("gpu_training", "gpu_volume_fusion", "gpu_pctnet")
VARIANTS = {
    "as it is": (),
    "compiled": ("training.compile=true",),
    "channels last": ("training.channels_last=true",),
    "without workers": ("training.num_workers=0",),
}
FEW, MANY = 20, 120
WAITS = "called a synchronizing CUDA operation"


def main() -> None:
    """Run all parts, or say that there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="phantom:16")
    parser.add_argument("--recipes", default="misfm,mis-fm-2023,openmind-mae,openmind-mae-primus")
    parser.add_argument("--published", type=Path, help="clone of the published code")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not has_gpu():
        for part in PARTS:
            skipped(part)
        return
    logging.getLogger("misfm").setLevel(logging.ERROR)
    rows = {
        f"{recipe}, {name}": training(recipe, arguments.store, changes)
        for recipe in arguments.recipes.split(",")
        for name, changes in VARIANTS.items()
    }
    kept({"benchmark": "gpu_training", "per": "training step", "rows": rows, "machine": machine()})
    volume_fusion(arguments.rounds)
    if arguments.published is None:
        skipped("gpu_pctnet", "no --published")
    else:
        pctnet(arguments.published, arguments.rounds)


def training(recipe: str, store: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """Figures of a step of one recipe."""
    few, many = (pretraining(recipe, store, changes, steps) for steps in (FEW, MANY))
    steps = MANY - FEW
    seconds = (many["wall_s"] - few["wall_s"]) / steps
    return {
        "samples_per_s": rounded(many["batch_size"] / seconds),
        "step_s": rounded(seconds),
        "busy": rounded((many["kernels_s"] - few["kernels_s"]) / (many["wall_s"] - few["wall_s"])),
        "waits_per_step": rounded((many["waits"] - few["waits"]) / steps),
        "start_s": rounded(few["wall_s"] - FEW * seconds),
        "peak_gb": rounded(many["peak_gb"]),
        "planned_at_least_gb": rounded(many["planned_gb"]),
    }


def pretraining(recipe: str, store: str, changes: tuple[str, ...], steps: int) -> dict[str, float]:
    """Pretrain for some steps, and look on."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from misfm.commands.pretrain import pretrain
    from misfm.config import PretrainSettings
    from misfm.planning.room import least_saved_bytes
    from misfm.resolve import resolve

    fixed = [f"training.steps={steps}", "validation_batches=1", f"training.log_every={steps}"]
    options = {"store": store}
    settings = resolve(PretrainSettings, recipe=recipe, options=options, assignments=[*changes, *fixed])
    torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        began = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            pretrain(settings, Path(folder) / "run")
        wall = time.perf_counter() - began
        torch.cuda.set_sync_debug_mode("default")
        rmtree(Path(folder) / "run")
    voxels = settings.batch_size * prod(settings.patch_size)
    return {
        "wall_s": wall,
        "batch_size": settings.batch_size,
        "kernels_s": sum(event.self_device_time_total for event in watched.key_averages()) / 1e6,
        "waits": sum(WAITS in str(warning.message) for warning in caught),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "planned_gb": voxels * least_saved_bytes(settings.network) / 1e9,
    }


def volume_fusion(rounds: int) -> None:
    """A sample of Volume Fusion v2, made on the GPU and on the CPU."""
    import torch
    from volume_fusion import PATCH_SIZE, ct_like

    from misfm.pretext import Placement
    from misfm.pretext.volume_fusion import VolumeFusionV2
    from misfm.seeding import generator_for

    volume, size = ct_like(), 4
    placement = Placement.whole(size, 2, volume.shape[1:])

    def on(device: str) -> Any:
        patches = volume.to(device).expand(size, 2, *volume.shape)

        def make(turn: int) -> None:
            VolumeFusionV2().prepare(patches, placement, PATCH_SIZE, generator_for(turn))
            torch.cuda.synchronize()

        return make

    times = alternate({"GPU": on("cuda"), "CPU": on("cpu")}, rounds, count=size)
    report("gpu_volume_fusion", times, per="sample of 64x128x128")


def pctnet(published: Path, rounds: int) -> None:
    """A training step of PCT-Net, published and ours, with the same weights, in bfloat16."""
    import torch
    from pctnet_speed import both_networks, import_published, step

    size = (64, 128, 128)
    theirs, ours = (network.cuda() for network in both_networks(import_published(published), size))
    x = torch.randn(2, 1, *size, device="cuda")

    def stepping(network: Any) -> Any:
        def take(turn: int) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                step(network, x)
            torch.cuda.synchronize()

        return take

    times = alternate({"misfm": stepping(ours), "published": stepping(theirs)}, rounds, warm_up=3)
    report("gpu_pctnet", times, per="training step of two patches of 64x128x128 in bfloat16")


if __name__ == "__main__":
    main()
