"""110,000 volumes for 400,000 steps on paper: bytes, reads, GPU hours, cost, and what breaks first.

    python benchmarks/scaling_paper.py --store STORE     # measures what is measured here
    python benchmarks/scaling_paper.py                   # makes the table again of what was measured

Measures bytes a voxel on disk, on a store of CT ingested with `--spacing native`, and the processor's seconds
to read a patch of a large volume, for which its largest one is mirrored in all directions. Counts the
operations of a training step (on torch's meta device, so nothing is computed). Where a figure is of somebody
else, the table names the source, and where there is none it says *assumed*. Prints the table and puts it into
`docs/scaling.md`.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import cpu_seconds, kept, machine, result, rounded

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- table: made by benchmarks/scaling_paper.py -->", "<!-- end of the table -->"
VOLUMES, STEPS = 110_000, 400_000
SHAPE = (180, 512, 512)
"""Voxels of a CT of the trunk as scanners make them: an assumption."""
LARGE = (192, 352, 352)
"""Voxels of the volume that patches are read from."""
ONE, MANY = 1, 8
"""GPUs."""
PLANS: dict[str, dict[str, Any]] = {
    "MIS-FM (PCT-Net)": {
        "recipe": "mis-fm-2023",
        "network": "pctnet",
        "patch": (64, 128, 128),
        "batch": 4,
        "source": 1.0,
        "classes": 5,
    },
    "OpenMind (ResEnc-L)": {
        "recipe": "openmind-mae",
        "network": "resenc-l",
        "patch": (160, 160, 160),
        "batch": 2,
        "source": 1.0,
        "classes": 1,
    },
}
PEAK = 312e12
"""Operations a second of an A100 in bfloat16: NVIDIA's data sheet."""
USED = 0.25
"""Share of them that a training reaches."""
READS = 100


def main() -> None:
    """Measure where there is a store, and make the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path)
    parser.add_argument("--price", type=float, default=2.0, help="dollars an hour of a GPU")
    parser.add_argument(
        "--used", type=float, default=USED, help="share of a GPU's operations that is reached"
    )
    arguments = parser.parse_args()
    if arguments.store is not None:
        kept(measured(arguments.store))
    found = result("scaling_paper")
    if found is None:
        raise SystemExit(
            "Nothing has been measured yet: give --store, a store of CT written by misfm ingest."
        )
    text = table(found, arguments.used, arguments.price)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)


def measured(path: Path) -> dict[str, Any]:
    """What this script measures itself."""
    from misfm.data.store import Store

    store = Store.open(path)
    records = list(store.records())
    size = sum(file.stat().st_size for file in (path / "volumes").rglob("*") if file.is_file())
    with TemporaryDirectory() as folder:
        large = enlarged(store, max(records, key=lambda record: prod(record.shape)), Path(folder))
        seconds = {name: rounded(read_seconds(large, plan)) for name, plan in PLANS.items()}
    return {
        "benchmark": "scaling_paper",
        "command": "python benchmarks/scaling_paper.py --store STORE",
        "volumes": len(records),
        "bytes_a_voxel": rounded(size / sum(prod(record.shape) for record in records)),
        "read_cpu_s": seconds,
        "operations": {name: operations(plan) for name, plan in PLANS.items()},
        "machine": machine(),
    }


def enlarged(store: Any, record: Any, folder: Path) -> Any:
    """A store of one volume of LARGE voxels: the record's, mirrored again and again."""
    import nibabel
    import numpy as np

    from misfm.data.ingest import ingest
    from misfm.data.record import IngestSettings
    from misfm.data.store import Store
    from misfm.volume import Box

    voxels = store.read_patch(record, Box((0, 0, 0), record.shape))[0][0]
    more = [(0, side - length) for side, length in zip(LARGE, voxels.shape, strict=True)]
    image = nibabel.Nifti1Image(np.pad(voxels.astype(np.int16), more, mode="symmetric"), np.eye(4))
    nibabel.save(image, folder / "large.nii.gz")
    ingest([folder / "large.nii.gz"], folder / "store", IngestSettings(spacing="native", intensity="ct"))
    return Store.open(folder / "store")


def read_seconds(store: Any, plan: dict[str, Any]) -> float:
    """Processor seconds to read and normalise a patch, drawn as in training."""
    from misfm.data.patches import UnlabelledPatches

    patches = UnlabelledPatches(
        store, list(store.records()), plan["patch"], num_patches=1, batch_size=1, seed=0
    )
    for index in range(READS // 10):
        patches[index]
    began = cpu_seconds()
    for index in range(READS):
        patches[READS + index]
    return (cpu_seconds() - began) / READS


def operations(plan: dict[str, Any]) -> float:
    """Floating-point operations of forward and backward pass for a sample."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from misfm.models import create

    model = create(plan["network"], num_classes=plan["classes"], patch_size=plan["patch"]).to("meta")
    x = torch.randn(1, 1, *plan["patch"], device="meta")
    with FlopCounterMode(display=False) as counter:
        model.train()(x).sum().backward()
    return float(counter.get_total_flops())


def table(found: dict[str, Any], used: float, price: float) -> str:
    """The table, Markdown."""
    from misfm.report.markdown import markdown_table

    columns = [column(found, name, plan, used, price) for name, plan in PLANS.items()]
    heads = ["", *PLANS, "from"]
    rows = [[what, *(each[what][0] for each in columns), columns[0][what][1]] for what in columns[0]]
    return "\n".join(markdown_table(heads, rows))


def column(
    found: dict[str, Any], name: str, plan: dict[str, Any], used: float, price: float
) -> dict[str, tuple[str, str]]:
    """What one plan takes: each figure with where it is from."""
    here = "`scaling_paper.py`"
    disk = VOLUMES * prod(SHAPE) * found["bytes_a_voxel"]
    samples = STEPS * plan["batch"]
    step_s = plan["batch"] * found["operations"][name] / (PEAK * used)
    reads = plan["batch"] / step_s
    bytes_a_read = prod(plan["patch"]) * found["bytes_a_voxel"]
    cores = reads * found["read_cpu_s"][name]
    hours = STEPS * step_s / 3600
    share = f"{100 * used:g} % of an A100's 312 Tflop/s in bfloat16 (NVIDIA's data sheet): assumed"
    return {
        "patch, batch": (
            f"{'x'.join(map(str, plan['patch']))}, {plan['batch']}",
            "the recipes' own",
        ),
        "store of 110,000 volumes": (
            f"{disk / 1e12:.1f} TB",
            f"{here}: {found['bytes_a_voxel']:.2f} bytes a voxel, {'x'.join(map(str, SHAPE))}: assumed",
        ),
        "samples in 400,000 steps": (f"{samples:,}", "steps x batch"),
        "visits of a volume": (f"{samples / VOLUMES:.1f}", "samples over volumes"),
        "operations of a sample": (f"{found['operations'][name] / 1e12:.2f} Tflop", f"{here}, counted"),
        "a step on one GPU": (f"{step_s:.3f} s", share),
        "GPU hours": (f"{hours:,.0f}", "steps x seconds"),
        f"days on {MANY} GPUs": (f"{hours / MANY / 24:.1f}", "if shared out without loss"),
        "cost": (f"${hours * price:,.0f}", f"${price:g} an hour of a GPU: assumed"),
        "patches a second, for each GPU": (f"{reads:.1f}", "batch over seconds"),
        "read from disk, for each GPU": (
            f"{reads * bytes_a_read / 1e6:.0f} MB/s",
            "patches x bytes; chunks are read whole, so more",
        ),
        "cores that read, for each GPU": (f"{cores:.2f}", f"{here}: CPU seconds of a patch"),
    }


if __name__ == "__main__":
    main()
