"""Training on 1 and 2 processes of one thread each, in turn: samples per second of a pretraining.

    python benchmarks/scaling.py [--rounds 3] [--steps 30] [--devices 1,2]

Speed is that of the steps alone, as ``metrics.jsonl`` has it; CPU seconds are those of the whole command,
with its start, for each sample. On GPUs ``--devices 1,2,4`` measures these. The batch is the same throughout,
so that all take the same steps. Writes ``results/scaling.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from measure import RESULTS, Times, in_process, report, rounded

from misfm.report.markdown import markdown_table
from misfm.training.run import RunFolder

THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
BATCH, PATCH = 4, (32, 64, 64)


def pretrain(folder: Path, count: int, steps: int, number: int) -> tuple[float, float]:
    """Pretrain on ``count`` devices; return samples per second, and CPU seconds of a sample."""
    out = folder / f"{count}-{number}"
    settings = {
        "batch_size": BATCH,
        "patch_size": list(PATCH),
        "validation_batches": 1,
        "training.steps": steps,
        "training.log_every": max(1, steps // 3),
        "training.validate_every": steps,
        "training.checkpoint_every": steps,
        "training.precision": "float32",
    }
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = (sys.executable, "-m", "misfm", "pretrain", "--store", str(folder / "store"), "--out", str(out))
    used = in_process([*command, *chosen, "--devices", str(count)], env={**os.environ, **THREAD})
    speeds = [row["samples_per_s"] for row in RunFolder(out).read_metrics()]
    return statistics.median(speeds[1:]), used["cpu_s"] / (steps * BATCH)


def make_store(folder: Path) -> None:
    """Ingest generated scans."""
    from misfm.data.generated import write_phantom_scans
    from misfm.data.ingest import ingest
    from misfm.data.record import IngestSettings
    from misfm.synthesis.generate import PhantomSettings

    write_phantom_scans(folder / "scans", 8, seed=0, settings=PhantomSettings())
    ingest([folder / "scans"], folder / "store", IngestSettings(spacing="native", intensity="ct:-1000,1000"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--devices", default="1,2")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.devices.split(",")]
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    cpu: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name))
        for number in range(arguments.rounds):
            for count in counts if number % 2 else counts[::-1]:
                speed, used = pretrain(Path(name), count, arguments.steps, number)
                speeds[count].append(speed)
                cpu[count].append(used)
    names = {count: f"{count} process{'es' if count > 1 else ''}" for count in counts}
    line = report(
        "scaling",
        {names[n]: Times([1 / speed for speed in speeds[n]], cpu[n]) for n in counts},
        per=f"sample of a batch of {BATCH} patches of {PATCH}",
        samples_per_s={names[n]: rounded(statistics.median(speeds[n])) for n in counts},
        times_the_speed={
            names[n]: rounded(statistics.median(speeds[n]) / statistics.median(speeds[counts[0]]))
            for n in counts
        },
    )
    rows = [
        [name, line["samples_per_s"][name], line["times_the_speed"][name], line["times"][name]["cpu_s"]]
        for name in names.values()
    ]
    header = ["training on", "samples/s", "times the speed of the first", "CPU s a sample, start included"]
    load = f"Load average at the end: {line['machine']['load_average']} on {os.cpu_count()} cores."
    text = "\n".join([f"`{line['command']}`", "", *markdown_table(header, rows), "", load, ""])
    (RESULTS / "scaling.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
