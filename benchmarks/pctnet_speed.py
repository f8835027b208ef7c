"""Forward and training-step time of our PCT-Net beside the published code, with the same weights.

Both run in this process on one thread, in turn, so that whatever else the machine does falls on both;
times are CPU seconds. A step is forward and backward in training mode, dropout included, with outputs of
every level.


    git clone https://github.com/openmedlab/MIS-FM && python benchmarks/pctnet_speed.py --published MIS-FM

Writes ``results/pctnet_speed.json`` and ``.md``. Nothing but the checkout is needed: what the published files
import from timm, and einops, is stood in for where absent.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import misfm.models
import misfm.weights
from misfm.files import write_json, write_text
from misfm.report.markdown import markdown_table
from misfm.training.memory import keep_freed_memory

SMALL_PATCH = (16, 64, 64)
LARGEST_DIFFERENCE = 1e-5
CONVOLUTION = "convolution"
BUSY = "the machine was busy with other work, so trust the ratios and not the seconds"


class DropPath(nn.Module):
    """Leaves out a sample's branch with a probability while training, as timm's."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Keep a branch with the complementary probability, scaled up."""
        if not self.training:
            return x
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - self.probability)
        return x * kept.div_(1 - self.probability)


def import_published(path: Path) -> Callable[[dict[str, Any]], nn.Module]:
    """Return the class of the published network, standing in for absent packages."""
    layers = {"DropPath": DropPath, "to_3tuple": lambda n: (n,) * 3, "trunc_normal_": nn.init.trunc_normal_}
    stand_ins: dict[str, dict[str, dict[str, Any]]] = {
        "timm": {"timm": {}, "timm.models": {}, "timm.models.layers": layers},
        "einops": {"einops": {"rearrange": None}},
    }
    for package, modules in stand_ins.items():
        if importlib.util.find_spec(package) is None:
            for name, content in modules.items():
                sys.modules[name] = ModuleType(name)
                sys.modules[name].__dict__.update(content)
    sys.path.insert(0, str(path))
    try:
        network: Callable[[dict[str, Any]], nn.Module] = importlib.import_module("net.pct_net").PCTNet
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{path} holds no net/pct_net.py; clone https://github.com/openmedlab/MIS-FM and pass the folder."
        ) from error
    return network


def both_networks(published: Callable[[dict[str, Any]], nn.Module], patch_size: Sequence[int]) -> Any:
    """Return the published network and ours with the same weights."""
    torch.manual_seed(0)
    params = {
        "in_chns": 1,
        "class_num": 5,
        "input_size": list(patch_size),
        "feature_chns": [24, 48, 128, 256, 512],
        "dropout": [0, 0, 0.2, 0.2, 0.2],
        "depths": [2, 2, 2],
        "num_heads": [4, 8, 16],
        "window_sizes": [6, 6, 6],
        "resolution_mode": 1,
        "multiscale_pred": True,
    }
    theirs = published(params)
    ours = misfm.models.create(
        "pctnet", num_classes=5, patch_size=patch_size, deep_supervision=True, position_index="mis-fm"
    )
    misfm.weights.load(ours, theirs.state_dict())
    return theirs, ours


def forward(network: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        outputs = network(x)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def step(network: Callable[[Tensor], Any], x: Tensor) -> None:
    outputs = network(x)
    losses = [output.square().mean() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference over the levels, relative to a level's largest magnitude."""
    pairs = zip(ours, theirs, strict=True)
    largest = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not largest <= LARGEST_DIFFERENCE:
        raise SystemExit(f"The networks differ by {largest:.1e}: what follows would compare two things.")
    return largest


def compare(name: str, ours: Any, theirs: Any, x: Tensor, repeats: int) -> dict[str, Any]:
    """Times of ``ours`` and ``theirs``: (module, call) each."""
    seconds: dict[str, dict[str, list[float]]] = {"forward": {}, "step": {}}
    for module, _ in (ours, theirs):
        module.eval()
    equal_to = difference(forward(ours[1], x), forward(theirs[1], x))
    for round_ in range(-1, repeats):
        for what, action in (("forward", forward), ("step", step)):
            for who, (module, call) in (("published", theirs), ("misfm", ours)):
                module.train(what == "step")
                start = time.process_time()
                action(call, x)
                taken = time.process_time() - start
                module.zero_grad()
                if round_ >= 0:  # the one before warms up
                    seconds[what].setdefault(who, []).append(round(taken, 3))
        print(f"{name}: round {round_ + 1} of {repeats}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"name": name, "input": list(x.shape), "largest_difference": equal_to}
    for what, times in seconds.items():
        medians = {who: statistics.median(values) for who, values in times.items()}
        ratio = round(medians["published"] / medians["misfm"], 2)
        result[what] = {"median_s": medians, "all_s": times, "ratio": ratio}
    return result


def transformers(ours: Any, theirs: Any, repeats: int) -> list[dict[str, Any]]:
    """Compare the window attention of levels 2 to 4 alone, on tokens of the published layout."""
    rows = []
    for level in (2, 3, 4):
        mine = getattr(ours.backbone.encoder, f"block{level}").transformer
        published = getattr(theirs.pyramid_ct, f"convtrans_e{level}").trans
        grid = published.blocks[0].input_resolution
        x = torch.randn(1, grid[0] * grid[1] * grid[2], published.blocks[0].dim, requires_grad=True)
        call = lambda tokens, layer=published, grid=grid: layer(tokens, *grid)[0]  # noqa: E731
        rows.append(
            compare(f"transformer of level {level}", (mine, mine), (published, call), x, max(repeats, 3))
        )
    return rows


def convolution_share(network: nn.Module, x: Tensor, action: Callable[..., object]) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        action(network, x)
    events = profiler.key_averages()
    spent = sum(event.self_cpu_time_total for event in events if CONVOLUTION in event.key)
    return round(float(spent / sum(event.self_cpu_time_total for event in events)), 3)


def floor(ours: nn.Module, x: Tensor) -> dict[str, float]:
    """Floating-point operations of the convolutions of a forward pass at the speed of a matrix product."""
    with FlopCounterMode(display=False) as counter:
        forward(ours, x)
    counts = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    matrix = torch.randn(2048, 2048)
    taken = []
    for _ in range(5):
        start = time.process_time()
        _ = matrix @ matrix
        taken.append(time.process_time() - start)
    speed = 2 * 2048**3 / min(taken)
    convolutions = sum(flops for op, flops in counts.items() if CONVOLUTION in op)
    return {
        "convolution_gflop": round(convolutions / 1e9, 1),
        "all_gflop": round(sum(counts.values()) / 1e9, 1),
        "gemm_gflop_per_s": round(speed / 1e9, 1),
        "convolution_floor_s": round(convolutions / speed, 2),
    }


def table(results: dict[str, Any]) -> str:
    heads = ["CPU seconds", "forward: published", "misfm", "ratio", "step: published", "misfm", "ratio"]
    rows = []
    for row in results["rows"]:
        cells = [row["name"]]
        for what in ("forward", "step"):
            medians = row[what]["median_s"]
            cells += [f"{medians[who]:.2f}" for who in ("published", "misfm")] + [f"{row[what]['ratio']:.2f}"]
        rows.append(cells)
    lines = markdown_table(heads, rows)
    limit, shares, info = results["floor"], results["convolution_share"], results["machine"]
    worst = max(row["largest_difference"] for row in results["rows"])
    lines += [
        "",
        f"Medians of {results['repeats']} rounds (small rows: more), published and ours in turn, on one "
        "thread in float32; the ratio is published / misfm. Largest relative difference of outputs in eval "
        f"mode: {worst:.0e}. Freed memory was kept for both, as our training does.",
        f"Convolutions are {limit['convolution_gflop']:.0f} of the {limit['all_gflop']:.0f} Gflop of a "
        f"forward pass of the first row: {limit['convolution_floor_s']:.1f} s at the "
        f"{limit['gemm_gflop_per_s']:.0f} Gflop/s of a matrix product, which nothing here saves. They take "
        + ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
        + ".",
        f"{info['cpu']} ({info['capability']}), {info['logical_cores']} logical cores, torch "
        f"{info['torch']}; "
        + (BUSY if info["load_average_at_start"] > 1 else "the machine was otherwise idle")
        + f" (load average {info['load_average_at_start']} at the start).",
    ]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PCT-Net beside the published code.")
    parser.add_argument("--published", type=Path, required=True, help="folder of a MIS-FM checkout")
    parser.add_argument("--patch-size", type=int, nargs=3, default=(64, 128, 128))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    info = machine()
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    published = import_published(args.published)
    rows: list[dict[str, Any]] = []
    shares: dict[str, float] = {}
    limit: dict[str, float] = {}
    for patch_size in (tuple(args.patch_size), SMALL_PATCH):
        theirs, ours = both_networks(published, patch_size)
        x = torch.randn(args.batch_size, 1, *patch_size)
        name = "x".join(map(str, patch_size)) + f", batch {args.batch_size}"
        repeats = args.repeats if patch_size != SMALL_PATCH else max(args.repeats, 9)
        rows.append(compare(name, (ours, ours), (theirs, theirs), x, repeats))
        if not limit:
            limit = floor(ours.eval(), x)
            shares["our forward"] = convolution_share(ours.eval(), x, forward)
            shares["our step"] = convolution_share(ours.train(), x, step)
            blocks = transformers(ours, theirs, args.repeats)
    results = {
        "machine": info,
        "repeats": args.repeats,
        "freed_memory_kept": kept,
        "rows": rows + blocks,
        "floor": limit,
        "convolution_share": shares,
    }
    write_json(args.out / "pctnet_speed.json", results)
    write_text(args.out / "pctnet_speed.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
