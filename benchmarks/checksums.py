"""What verifying checksums costs while patches are read from a store of real scans.

    python benchmarks/checksums.py --scans DATA/unlabelled/head_neck_ct --store STORE

Ingests the first scans of a folder and reads random patches of them as pretraining does: all with checksums,
as a process that has verified no file yet, and all without, by turns of a few patches each. Prints the ratio,
and how many patches of a volume a process has to read for the checksums to take less than 5 % of its reading
time, here and of a volume whose file has 25 MB. Times are of the processor, so what else the machine does
counts little. Writes benchmarks/results/checksums.json and checksums.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from misfm.data import checksums
from misfm.data.ingest import ingest
from misfm.data.patches import draw_box
from misfm.data.record import IngestSettings, Record
from misfm.data.store import Store
from misfm.files import write_json, write_text
from misfm.seeding import generator_for
from misfm.volume import Shape

RESULTS = Path(__file__).parent / "results"
PATCH: Shape = (64, 128, 128)
ALLOWED = 0.05
TURN = 25
"""Patches in a turn."""


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True, help="made where missing")
    parser.add_argument("--number", type=int, default=16, help="scans")
    parser.add_argument("--patches", type=int, default=4000, help="read each way")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.scans.iterdir() if path.is_file())[: arguments.number]
    ingest(files, arguments.store, IngestSettings())
    store = Store.open(arguments.store)
    checked = store.records()
    unchecked = [record.model_copy(update={"checks": None}) for record in checked]
    seconds = measure(store, checked, unchecked, arguments.patches)
    verifying = median(verify(store, checked) for _ in range(5))
    size = sum(record.checks.image.size for record in checked if record.checks)
    patch = seconds["without"] / arguments.patches
    per_volume = arguments.patches / len(checked)
    first = verifying / len(checked)
    always = max(0.0, (seconds["with"] - seconds["without"] - verifying) / arguments.patches)
    rows = {
        "volumes": len(checked),
        "mean file, MB": round(size / 1e6 / len(checked), 2),
        "patches of each volume": round(per_volume),
        "one patch, ms": round(1e3 * patch, 3),
        "verifying, each patch, ms": round(1e3 * always, 3),
        "verifying, each file, ms": round(1e3 * first, 3),
        "ratio of reading time, with to without": round(seconds["with"] / seconds["without"], 4),
        "patches of a volume until 5 %": round(first / (ALLOWED * patch - always), 1),
        "patches of a 25 MB volume until 5 %": round(25e6 * verifying / size / (ALLOWED * patch - always), 1),
    }
    write_json(RESULTS / "checksums.json", rows)
    lines = ["| measure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    write_text(RESULTS / "checksums.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def measure(
    store: Store, checked: Sequence[Record], unchecked: Sequence[Record], patches: int
) -> dict[str, float]:
    """Seconds that it takes to read patches with and without checksums, each patch both ways."""
    checksums._verified.clear()
    generator = generator_for(0, "patches")
    seconds = {"with": 0.0, "without": 0.0}
    for start in range(0, patches, TURN):
        drawn = torch.randint(len(checked), (TURN,), generator=generator).tolist()
        turns = [("with", checked), ("without", unchecked)]
        for name, records in turns if start // TURN % 2 else turns[::-1]:
            seconds[name] += read(store, [records[i] for i in drawn], start)
    return seconds


def read(store: Store, records: Sequence[Record], seed: int) -> float:
    """Seconds that it takes to read a patch of each record."""
    generator = generator_for(seed, "boxes")
    start = time.process_time()
    for record in records:
        box = draw_box(store.anchors(record), record.shape, PATCH, generator)
        store.read_patch(record, box)
    return time.process_time() - start


def verify(store: Store, records: Sequence[Record]) -> float:
    """Seconds that it takes to verify all files."""
    checksums._verified.clear()
    start = time.process_time()
    assert all(store.is_whole(record) for record in records)
    return time.process_time() - start


if __name__ == "__main__":
    main()
