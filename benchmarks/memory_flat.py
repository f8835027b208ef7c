"""Whether memory stays flat over a long training: what the process holds, every 500 of 10,000 steps.

    OMP_NUM_THREADS=1 python benchmarks/memory_flat.py [--steps 10000] [--workers N]

Pretrains a tiny network as `misfm pretrain` does, with its log, validations and checkpoints; takes about five
minutes on one core. Memory is flat if the second half of the run grows by less than 2 MB in 1,000 steps (of a
straight line through it) and ends within 2 % of its middle. Writes `results/memory_flat.json`, one JSON line.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import cpu_seconds, kept, machine, memory_mb, rounded

EVERY = 500
MOST_GROWTH, MOST_CHANGE = 2.0, 0.02
SETTINGS = (
    "network.options.channels=[4, 8]",
    "patch_size=[8, 12, 12]",
    "batch_size=1",
    "pretext.name=mae",
    "pretext.options={}",
    "validation_batches=1",
    f"training.log_every={EVERY}",
    "training.validate_every=1000",
    "training.checkpoint_every=1000",
)


class Watch(logging.Handler):
    """Notes what the process holds at each logged step."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        if isinstance(step := getattr(record, "step", None), int):
            self.held[step] = memory_mb()


def main() -> None:
    """Train, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    watch, began = Watch(), (time.perf_counter(), cpu_seconds())
    train(watch, arguments.steps, arguments.workers)
    steps = sorted(watch.held)
    later = [step for step in steps if step >= arguments.steps / 2]
    held = [watch.held[step] for step in later]
    growth = 1000 * statistics.linear_regression(later, held).slope
    change = held[-1] / held[0] - 1
    kept(
        {
            "benchmark": "memory_flat",
            "command": f"python benchmarks/memory_flat.py --steps {arguments.steps}",
            "flat": growth < MOST_GROWTH and abs(change) < MOST_CHANGE,
            "growth_mb_per_1000_steps": rounded(growth),
            "change_in_second_half": rounded(change),
            "held_mb": {step: rounded(watch.held[step]) for step in steps},
            "wall_s": rounded(time.perf_counter() - began[0]),
            "cpu_s": rounded(cpu_seconds() - began[1]),
            "machine": machine(),
        }
    )


def train(watch: Watch, steps: int, workers: int) -> None:
    """Pretrain a tiny network on generated volumes."""
    from misfm.commands.pretrain import pretrain
    from misfm.commands.trials import Trial, pretrain_settings
    from misfm.config import CompareSettings

    logger = logging.getLogger("misfm")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    fixed = (f"training.steps={steps}", f"training.num_workers={workers}")
    comparison = CompareSettings(
        store="phantom:4", dataset="", recipes=("small",), pretrain=(*SETTINGS, *fixed)
    )
    with TemporaryDirectory() as folder:
        pretrain(pretrain_settings(comparison, Trial("unet", "small")), Path(folder) / "run")


if __name__ == "__main__":
    main()
