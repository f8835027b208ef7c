"""Published networks at their published sizes: parameters, one forward, one training step, peak memory.

Each network runs in a process of its own, batch 1, float32, on the CPU.

    python benchmarks/full_size.py [--networks pctnet,fmunet,resenc-l,primus-m]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from misfm.files import write_json, write_text
from misfm.report.markdown import markdown_table

RESULTS = Path(__file__).parent / "results" / "full_size.json"
PUBLISHED: dict[str, dict[str, Any]] = {
    # parameters: what the published code counts; ours builds only the stem and head that run
    "pctnet": {
        "classes": 5,
        "patch_size": (64, 128, 128),
        "published": 45_289_554,
        "options": {"anisotropy": 1},
    },
    "fmunet": {"classes": 5, "patch_size": (64, 128, 128), "published": 47_371_572, "options": {}},
    "resenc-l": {"classes": 1, "patch_size": (160, 160, 160), "published": 102_348_965, "options": {}},
    "primus-m": {"classes": 2, "patch_size": (160, 160, 160), "published": 152_021_402, "options": {}},
}


def main() -> None:
    """Measure every network, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(PUBLISHED))
    parser.add_argument("--one", help="measure this one here and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.networks.split(","):
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
        write_json(RESULTS, rows)
        write_text(RESULTS.with_suffix(".md"), table(rows))
    print(table(rows))


def measure(name: str) -> dict[str, Any]:
    """Build one network and run it."""
    import torch

    from misfm.losses import segmentation_loss
    from misfm.models import create
    from misfm.training.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    case = PUBLISHED[name]
    size, classes = case["patch_size"], case["classes"]
    began = time.perf_counter()
    model = create(name, num_classes=classes, patch_size=size, deep_supervision=True, **case["options"])
    built = time.perf_counter() - began
    x = torch.randn(1, 1, *size)
    began = time.perf_counter()
    with torch.inference_mode():
        model.eval()(x)
    forward = time.perf_counter() - began
    target = torch.randint(classes, (1, *size))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    began = time.perf_counter()
    loss = torch.stack(list(segmentation_loss(model.train()(x), target).values())).sum()
    loss.backward()
    optimizer.step()
    step = time.perf_counter() - began
    reached = sum(p.grad is not None for p in model.parameters())
    return {
        "patch_size": size,
        "classes": classes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "published_parameters": case["published"],
        "build_s": round(built, 1),
        "forward_s": round(forward, 1),
        "training_step_s": round(step, 1),
        "loss": round(loss.item(), 4),
        "tensors_with_gradient": f"{reached} of {len(list(model.parameters()))}",
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "threads": torch.get_num_threads(),
    }


def table(rows: dict[str, Any]) -> str:
    """Markdown."""
    heads = ["network", "patch", "classes", "parameters", "published", "forward, s", "training step, s"]
    lines = []
    for name, row in rows.items():
        patch = "x".join(map(str, row["patch_size"]))
        cells = [name, patch, row["classes"], f"{row['parameters']:,}", f"{row['published_parameters']:,}"]
        cells += [row["forward_s"], row["training_step_s"], row["peak_memory_gib"]]
        lines.append(cells)
    threads = {row["threads"] for row in rows.values()}
    return (
        "\n".join(markdown_table([*heads, "peak, GiB"], lines))
        + f"\n\nBatch 1, float32, CPU, {threads} threads.\n"
    )


if __name__ == "__main__":
    main()
