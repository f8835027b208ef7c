"""What a training run records: ``metrics.jsonl``, TensorBoard, ``log.txt`` and the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from misfm.errors import DataError
from misfm.files import checksum, forget_checksum, write_text
from misfm.terminal import format_duration, logger
from misfm.training.run import RunFolder, damaged_metrics

SPEED = "samples_per_s"
"""What is logged and differs between equal runs."""


class NoLog:
    """That of a process which keeps none."""

    steps = 0
    checksum: int | None = None

    def __enter__(self) -> NoLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log nothing."""

    def sync(self) -> None:
        """Nothing is to be kept."""


class MetricsLog(NoLog):
    """Writes one JSON object a logged step and the same numbers to TensorBoard.

    Args:
        run: where to write.
        steps: length of the run, kept as ``steps``: one that is stopped earlier changes it.
        start: first step of this session; rows logged at or after it by a killed session are dropped, since
            those steps are repeated.
        known: checksum of the rows before it; None where that is not known.

    Attributes:
        checksum: of all rows, but for how fast the steps were, so that equal runs have equal checkpoints.

    Raises:
        DataError: the rows before ``start`` are damaged.
    """

    def __init__(self, run: RunFolder, steps: int, start: int, known: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # one second to import: only when training starts

        rows = [row for row in run.read_metrics() if row["step"] <= start]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.checksum: int = 0
        for row in rows:
            self._count(row)
        if known not in (None, self.checksum) and run.metrics.exists():
            raise damaged_metrics(run.metrics, f"it is not what was logged until step {start}")
        forget_checksum(run.metrics)
        write_text(run.metrics, text)
        self._run = run
        self._file = open(run.metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start or None)
        self._handler = logging.FileHandler(run.path / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(self._handler)
        self._level = logger.level
        if not logger.isEnabledFor(logging.INFO):  # used as a library: log.txt is complete all the same
            logger.setLevel(logging.INFO)
        self.steps = steps
        self._start = start
        self._began = time.perf_counter()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()
        if error is None:
            self._run.seal_metrics()
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)
        self._handler.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of the state after ``step`` steps; what is not finite becomes null."""
        row = {
            name: (float(f"{value:.6g}") if math.isfinite(value) else None) for name, value in values.items()
        }
        self.check()
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        self._count({"step": step, **row})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if value is not None)
        message = f"step {step}/{self.steps}  {numbers}  {self._time_left(step)}".rstrip()
        logger.info(message, extra={"step": step, "steps": self.steps})

    def check(self) -> None:
        """Check that the log is still the file of that name.

        Raises:
            DataError: the folder was removed or moved; what is written would go nowhere, or into another one.
        """
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), self._run.metrics.stat())
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{self._run.path} was removed or moved while the run went on: put it back and resume, or "
                "start the run again."
            )

    def sync(self) -> None:
        """Bring the log to the disk, before a checkpoint that tells what it holds."""
        self.check()
        os.fsync(self._file.fileno())

    def _count(self, row: Mapping[str, Any]) -> None:
        told = {name: value for name, value in row.items() if name != SPEED}
        self.checksum = checksum(json.dumps(told).encode(), self.checksum)

    def _time_left(self, step: int) -> str:
        done = step - self._start
        if done <= 0 or step >= self.steps:
            return ""
        seconds = (time.perf_counter() - self._began) / done * (self.steps - step)
        return f"{format_duration(seconds)} left"
