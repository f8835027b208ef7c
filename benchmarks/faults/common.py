"""What the fault campaigns share: a state that survives being stopped, forked workers with limits, results.

Fault ``i`` of a campaign follows from its seed and ``i`` alone: a campaign that was stopped goes on with the
next one, and any single fault can be tried again with ``--only I``.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import gc
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from misfm.errors import MisfmError
from misfm.files import write_json
from misfm.report.markdown import markdown_table
from misfm.terminal import format_duration

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
GOOD = ("refused", "value", "harmless", "healed", "survived")
"""Outcomes of a fault that keep the promise; all others are findings."""
OUT_OF_MEMORY = re.compile(r"unable to allocate|bad_alloc|can't allocate", re.I)
"""In a sentence: what a file claims was believed until memory ran out."""
TOLD = "it asks for more memory than it can fill"
MEMORY_HEADROOM = 2 << 30
"""Bytes of address space that a worker may take on top of what it has."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        kind: what it hit: a command, a kind of file.
        result: one of :data:`GOOD`, or what went wrong.
        detail: a sentence; of what went wrong the last line of the traceback, too.
        place: where in misfm it went wrong; findings of one kind, result and place are one finding.
    """

    kind: str
    result: str
    detail: str = ""
    place: str = ""


@dataclass
class Campaign:
    """Counts and findings so far, kept in a file after each batch.

    Attributes:
        name: kills, flips or inputs.
        seed: of all draws.
        folder: of state, material and findings.
        done: faults tried.
        counts: by kind and result.
        findings: the first fault of each kind of finding, with the number of its kind.
        numbers: more that a campaign counts.
    """

    name: str
    seed: int
    folder: Path
    done: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The state."""
        return self.folder / f"{self.name}-{self.seed}.json"

    @classmethod
    def open(cls, name: str, seed: int, folder: Path) -> Campaign:
        """Go on with a campaign, or begin one."""
        campaign = cls(name, seed, folder)
        if campaign.file.exists():
            state = json.loads(campaign.file.read_text(encoding="utf-8"))
            for key in ("done", "counts", "findings", "numbers"):
                setattr(campaign, key, state[key])
        return campaign

    def save(self) -> None:
        """Keep the state."""
        write_json(self.file, {key: value for key, value in asdict(self).items() if key != "folder"})

    def note(self, number: int, outcome: Outcome) -> bool:
        """Count an outcome; True where it is a finding of a new kind."""
        row = self.counts.setdefault(outcome.kind, {})
        row[outcome.result] = row.get(outcome.result, 0) + 1
        if outcome.result in GOOD:
            return False
        key = f"{outcome.kind}: {outcome.result} {outcome.place}".strip()
        known = self.findings.setdefault(key, {"times": 0, "number": number, **asdict(outcome)})
        known["times"] += 1
        return bool(known["times"] == 1)

    def table(self) -> str:
        """Counts by kind and result."""
        results = sorted({result for row in self.counts.values() for result in row}, key=_rank)
        rows = [
            [kind, *(str(row.get(result, 0)) for result in results), str(sum(row.values()))]
            for kind, row in sorted(self.counts.items())
        ]
        sums = [sum(row.get(result, 0) for row in self.counts.values()) for result in results]
        rows.append(["all", *map(str, sums), str(sum(sums))])
        return "\n".join(markdown_table(["hit", *results, "tried"], rows))

    def publish(self, path: Path | None) -> None:
        """Print the table and the findings, and write them into ``path``."""
        print(self.table())
        for key, finding in self.findings.items():
            print(f"FINDING {key} ({finding['times']} times, first {finding['number']}): {finding['detail']}")
        if path is not None:
            result = {
                "seed": self.seed,
                "faults": sum(sum(row.values()) for row in self.counts.values()),
                "date": datetime.date.today().isoformat(),
                "commit": commit(),
                **({"numbers": self.numbers} if self.numbers else {}),
                "counts": {kind: dict(sorted(row.items())) for kind, row in sorted(self.counts.items())},
                "findings": list(self.findings.values()),
            }
            write_json(path, result)


def _rank(result: str) -> tuple[bool, str]:
    return result not in GOOD, result


def commit() -> str:
    """The commit that is tried, with ``+changes`` where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=9", "--dirty=+changes"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Begun:
    """A campaign on its way.

    Attributes:
        name: of the campaign.
        arguments: ``count``, ``seed``, ``only``.
        kinds: the only ones to try; none means all.
        home: folder of the state and of what was found.
        folder: a new one for what faults are done to, in memory where the system has such a folder.
    """

    name: str
    arguments: argparse.Namespace
    kinds: tuple[str, ...]
    home: Path
    folder: Path

    def open(self) -> Campaign:
        """Begin, or go on where it was stopped."""
        return Campaign.open(self.name + "".join(self.kinds), self.arguments.seed, self.home)

    def publish(self, campaign: Campaign) -> None:
        """Print the results, and write them where all kinds were tried, or where that was asked for."""
        campaign.publish(self.arguments.out or (None if self.kinds else RESULTS / f"faults_{self.name}.json"))


@contextmanager
def begun(name: str, description: str, count: int) -> Iterator[Begun]:
    """Begin a campaign as the command line says; what it made goes at the end, its state stays.

    Args:
        name: of the campaign.
        description: for ``--help``.
        count: faults to try by default.
    """
    plain_signals()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    arguments = arguments_of(description, count)
    kinds = tuple(kind for kind in arguments.kinds.split(";") if kind)
    folder = scratch(name)
    try:
        yield Begun(name, arguments, kinds, arguments.folder or ROOT / "runs" / "faults", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def arguments_of(description: str, count: int) -> argparse.Namespace:
    """Parse what all campaigns take."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("--count", type=int, default=count, help="faults to try in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kinds",
        default="",
        metavar="A;B;...",
        help="only faults of these kinds; then no results are written",
    )
    parser.add_argument("--only", type=int, metavar="I", help="try this fault alone, and tell all of it")
    parser.add_argument("--folder", type=Path, help="of the state; by default one below runs/")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/faults_NAME.json")
    return parser.parse_args()


def generator(seed: int, *what: object) -> random.Random:
    """A generator for one fault."""
    return random.Random(repr((seed, *what)))


def plain_signals() -> None:
    """Let signals do what they do in a program started from a terminal, whatever has started this one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def scratch(name: str) -> Path:
    """A new folder for what faults are done to, in memory where the system has such a folder."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix=f"misfm-{name}-", dir=memory if memory.is_dir() else None))


# What was raised


def judge_error(kind: str, error: BaseException) -> Outcome:
    """A sentence of ours is fine, unless memory ran out on the way to it; all else is a finding.

    A sentence that says that the file asked for too much is fine, too: the system refused, nothing was taken.
    """
    chain = list(causes(error))
    if any(isinstance(one, MemoryError) for one in chain) and TOLD not in str(error):
        return Outcome(kind, "memory", f"{type(error).__name__}: {error}"[:500], place_of(chain[-1]))
    if isinstance(error, MisfmError):
        result = "memory" if OUT_OF_MEMORY.search(str(error)) else "refused"
        return Outcome(kind, result, str(error)[:500])
    last = "".join(traceback.format_exception_only(error)).strip()
    return Outcome(kind, "traceback", last[:500], place_of(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def place_of(error: BaseException) -> str:
    """The deepest line of misfm that an exception passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/misfm/" in frame.filename]
    if not frames:
        return type(error).__name__
    deepest = frames[-1]
    module = deepest.filename.rpartition("/misfm/")[2]
    return f"{module}:{deepest.name} {type(error).__name__}"


# Forked workers


@dataclass(frozen=True)
class Limits:
    """What a fault may take.

    Attributes:
        seconds: of one fault; after these the worker is killed.
        memory: bytes of address space on top of what the worker has when it begins.
    """

    seconds: float = 5.0
    memory: int = MEMORY_HEADROOM


def forked(
    attempt: Callable[[int], Outcome],
    kind_of: Callable[[int], str],
    numbers: Sequence[int],
    limits: Limits | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Try faults in a worker that may hang or die: then another one goes on with the next fault."""
    left, limits = list(numbers), limits or Limits()
    while left:
        process, pipe = _start(attempt, left, limits)
        lines = _lines(pipe, limits.seconds)
        for line in lines:
            if line is None:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                number = left.pop(0)
                yield number, Outcome(kind_of(number), "hang", f"longer than {limits.seconds:g} s")
                break
            yield left.pop(0), Outcome(**json.loads(line))
        else:
            _, status = os.waitpid(process, 0)
            if left:
                number = left.pop(0)
                yield number, Outcome(kind_of(number), "crash", _ended(status))
        os.close(pipe)


def _lines(pipe: int, seconds: float) -> Iterator[bytes | None]:
    """Yield what comes out of a pipe, line by line; None once nothing has come for so long."""
    buffer = b""
    while True:
        line, end, rest = buffer.partition(b"\n")
        if end:
            buffer = rest
            yield line
            continue
        if not select.select([pipe], [], [], seconds)[0]:
            yield None
            return
        part = os.read(pipe, 1 << 16)
        if not part:
            return
        buffer += part


def _ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with exit status {os.WEXITSTATUS(status)}"


def _start(attempt: Callable[[int], Outcome], numbers: Sequence[int], limits: Limits) -> tuple[int, int]:
    """Fork a worker that writes a line for each fault; returns its id and the pipe to read from."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    status = 1
    try:
        faulthandler.disable()  # a test runner's would tell of what is tried here as if it had died itself
        plain_signals()
        os.close(reading)
        loud = os.dup(2)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (has + limits.memory, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            line = json.dumps(asdict(attempt(number))) + "\n"
            os.write(writing, line.encode("ascii"))
        status = 0
    except BaseException:  # a mistake of the campaign itself
        os.write(loud, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(status)  # never back into the parent's code


def run_campaign(
    campaign: Campaign,
    faults: Callable[[Sequence[int]], Iterator[tuple[int, Outcome]]],
    count: int,
    batch: int,
) -> None:
    """Try faults until there are ``count``, keeping the state after each batch."""
    began, first = time.monotonic(), campaign.done
    while campaign.done < count:
        numbers = range(campaign.done, min(count, campaign.done + batch))
        for number, outcome in faults(numbers):
            if campaign.note(number, outcome):
                print(f"FINDING {number} {outcome.kind}: {outcome.result} {outcome.place}: {outcome.detail}")
        campaign.done = numbers[-1] + 1
        campaign.save()
        rate = (campaign.done - first) / (time.monotonic() - began)
        left = format_duration((count - campaign.done) / rate)
        print(f"{campaign.name} {campaign.done}/{count}  {rate:.1f} a second  {left} left", flush=True)
