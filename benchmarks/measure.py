"""What benchmarks share: peers that take turns, CPU seconds beside wall seconds, one JSON line each.

    from measure import alternate, report, skipped

    times = alternate({"misfm": ours, "MONAI": theirs}, rounds=7)       # each is called with the round
    report("prediction", times, per="volume of 128x256x256", floor=Floor("the network alone", 3.1))

:func:`report` prints one line and writes it to ``results/NAME.json``. A part for which this machine lacks
something says so in a line of the same form: :func:`skipped`. On a busy machine trust CPU seconds and ratios
within a run: whatever else runs falls on all that take turns.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Floor:
    """What cannot be undercut.

    Attributes:
        what: it is, in words.
        seconds: it takes, for one of what is measured.
    """

    what: str
    seconds: float


@dataclass
class Times:
    """Seconds of all rounds, for one of what is measured.

    Attributes:
        wall: on the clock.
        cpu: of all processors, this process and those it has waited for.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Medians and ranges, rounded to four digits."""
        medians = {"wall_s": statistics.median(self.wall), "cpu_s": statistics.median(self.cpu)}
        ranges = {
            "wall_range_s": (min(self.wall), max(self.wall)),
            "cpu_range_s": (min(self.cpu), max(self.cpu)),
        }
        return {
            **{name: rounded(value) for name, value in medians.items()},
            **{name: [rounded(value) for value in values] for name, values in ranges.items()},
        }


def alternate(
    actions: Mapping[str, Callable[[int], object]], rounds: int, *, warm_up: int = 1, count: int = 1
) -> dict[str, Times]:
    """Time actions in turn, in the opposite order every other round.

    Args:
        actions: by name; each is called with the number of the round, below 0 while warming up.
        rounds: that count, for each.
        warm_up: rounds before them.
        count: how many of what is measured an action does; times are of one.
    """
    times = {name: Times() for name in actions}
    for number in range(-warm_up, rounds):
        names = list(actions) if number % 2 == 0 else list(actions)[::-1]
        for name in names:
            wall, cpu = time.perf_counter(), cpu_seconds()
            actions[name](number)
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            if number >= 0:
                times[name].wall.append(wall / count)
                times[name].cpu.append(cpu / count)
        if sys.stderr.isatty():
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return times


def cpu_seconds() -> float:
    """Seconds that processors have worked for this process and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_mb() -> float:
    """The most memory this process has held so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory_mb() -> float:
    """Memory this process holds now, MB; its peak where the system does not say."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return peak_mb()


def in_process(command: Sequence[str], **options: Any) -> dict[str, float]:
    """Run a command to its end; return its ``wall_s``, ``cpu_s`` and ``peak_mb``, its own children included.

    The peak is never less than what this process holds, of which the new one begins as a copy.

    Raises:
        CalledProcessError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, **options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * unit / 1e6,
    }


def report(
    benchmark: str,
    times: Mapping[str, Times],
    *,
    per: str = "",
    floor: Floor | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Print one JSON line, write it to ``results/BENCHMARK.json``, and return it.

    Args:
        benchmark: name, as of the file.
        times: by who was timed; the first is misfm, and the ratios say how many times as long others take.
        per: what the times are of.
        floor: what cannot be undercut.
        more: further figures, as they are.
    """
    rows = {name: measured.row() for name, measured in times.items()}
    line: dict[str, Any] = {
        "benchmark": benchmark,
        "command": " ".join(["python", *sys.argv]),
        **({"per": per} if per else {}),
        **({"times": rows, "rounds": max(len(measured.wall) for measured in times.values())} if rows else {}),
    }
    if len(times) > 1:
        first, *others = times
        line["times_as_long"] = {
            name: {
                clock: rounded(rows[name][f"{clock}_s"] / rows[first][f"{clock}_s"])
                for clock in ("wall", "cpu")
            }
            for name in others
            if rows[first]["wall_s"] and rows[first]["cpu_s"]
        }
    if floor is not None:
        line["floor"] = {"what": floor.what, "seconds": rounded(floor.seconds)}
    return kept({**line, **more, "machine": machine()})


def skipped(benchmark: str, why: str = "no GPU here") -> dict[str, Any]:
    """Print a line that says that a benchmark was not run, and why; results of before are kept."""
    line = {"benchmark": benchmark, "skipped": why}
    print(json.dumps(line), flush=True)
    return line


def kept(line: dict[str, Any]) -> dict[str, Any]:
    """Print a line and write it to its file in ``results``."""
    print(json.dumps(line), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{line['benchmark']}.json"
    path.write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
    return line


def result(benchmark: str) -> dict[str, Any] | None:
    """Return the last line of a benchmark; None where it has never run."""
    path = RESULTS / f"{benchmark}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def has_gpu() -> bool:
    """Whether there is a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, load, versions, and the GPU where there is one."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": rounded(os.getloadavg()[0]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
