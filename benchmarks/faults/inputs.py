"""Hostile and damaged input: spoilt files of every kind that misfm reads of users, each with limits.

    python benchmarks/faults/inputs.py --count 100000 --seed 0

A try is well if it ends in a value or in one of misfm's own sentences, within five seconds, with at most
four times the memory that the file honestly needs (and 64 MiB), without running out of memory on the way,
and with nothing written outside of its folder. Anything else is a finding; the file is kept, with the edits
that it needs.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import GOOD, Limits, Outcome, begun, forked, generator, judge_error, run_campaign
from mutations import Edit, edited, spoil
from samples import all_targets
from targets import Target

from misfm.errors import MisfmError

SECONDS = 5.0
"""That a reader may compute."""
HANGS = Limits(seconds=3 * SECONDS)
"""On the clock, other programs and the making of the file included."""
SLACK = 64 << 20
"""Bytes that a reader may take whatever the size of a file."""
TIMES = 4
"""How often a reader may hold what a file honestly needs."""
ELSEWHERE = [Path("/"), Path("/tmp")]


@dataclass(frozen=True)
class Inputs:
    """Tries of one seed.

    Attributes:
        targets: kinds of files.
        seed: of all draws.
        folder: each try has a folder below it.
        findings: where files that are findings are kept.
        warm: kinds that this process has read before.
    """

    targets: Sequence[Target]
    seed: int
    folder: Path
    findings: Path
    warm: set[str] = field(default_factory=set)

    def target(self, number: int) -> Target:
        """What a try reads."""
        draw = generator(self.seed, "inputs", number)
        return draw.choices(self.targets, weights=[target.weight for target in self.targets])[0]

    def kind(self, number: int) -> str:
        """The name of what a try reads."""
        return self.target(number).name

    def spoilt(self, number: int) -> tuple[bytes, list[Edit]]:
        """A good file, and the edits to make to it."""
        draw, target = generator(self.seed, "edits", number), self.target(number)
        content = draw.choice(target.seeds)
        return content, spoil(content, target.editor, draw)

    def attempt(self, number: int) -> Outcome:
        """Read a spoilt file; a finding is kept with as few edits as it needs."""
        target = self.target(number)
        good, edits = self.spoilt(number)
        outcome = self.read(target, edited(good, edits))
        if outcome.result in GOOD:
            return outcome
        for edit in [*edits]:
            fewer = [one for one in edits if one is not edit]
            if fewer and self.read(target, edited(good, fewer)).result == outcome.result:
                edits = fewer
        self.keep(number, edited(good, edits), edits, outcome)
        what = "; ".join(edit.what for edit in edits)
        return Outcome(outcome.kind, outcome.result, f"{outcome.detail} <- {what}"[:800], outcome.place)

    def keep(self, number: int, content: bytes, edits: Sequence[Edit], outcome: Outcome) -> None:
        """Keep a file that is a finding, and what is known of it."""
        path = self.findings / f"inputs-{self.seed}-{number}"
        path.with_suffix(".bin").write_bytes(content)
        lines = [outcome.kind, *(edit.what for edit in edits), outcome.result, outcome.detail]
        path.with_suffix(".txt").write_text("\n".join(lines), errors="backslashreplace")

    def read(self, target: Target, content: bytes) -> Outcome:
        """Read one file within the limits."""
        box = self.folder / "box"
        if target.name not in self.warm:  # what is loaded and cached on the first call is no file's fault
            self.warm.add(target.name)
            with contextlib.suppress(Exception):
                target.read(new_box(box), target.seeds[0])
        new_box(box)
        reset_peak()
        before, began, need = resident("VmRSS"), time.process_time(), len(content)
        try:
            need += target.read(box / "in", content)
            outcome = Outcome(target.name, "value")
        except Exception as error:
            outcome = judge_error(target.name, error)
            need += max(len(seed) for seed in target.seeds) * 4
        seconds, taken = time.process_time() - began, resident("VmHWM") - before
        if outcome.result not in GOOD:
            return outcome
        strays = [path for path in box.iterdir() if path.name != "in"]
        strays += [path for folder in ELSEWHERE for path in folder.glob("*ESC*")]
        if strays:
            _remove(strays)
            return Outcome(target.name, "escape", f"wrote {strays[0]}", "outside its folder")
        if seconds > SECONDS:
            return Outcome(target.name, "slow", f"{seconds:.1f} s; {outcome.detail}")
        if taken > TIMES * need + SLACK:
            detail = f"took {taken >> 20} MiB for {need >> 10} KiB; {outcome.detail}"
            return Outcome(target.name, "memory", detail, outcome.result)
        return outcome


def new_box(box: Path) -> Path:
    """An empty folder within an empty folder: what appears beside it was written where it must not be."""
    shutil.rmtree(box, ignore_errors=True)
    (box / "in").mkdir(parents=True)
    return box / "in"


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def reset_peak() -> None:
    """Forget how much memory this process has held at the most."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes of memory as the system counts them: ``VmRSS`` now, ``VmHWM`` at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    return 0


def prepare(folder: Path, seed: int, findings: Path, kinds: Sequence[str] = ()) -> Inputs:
    """Make good files, and read each once: what is loaded on the first call is no fault's memory or time."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    (folder / "material").mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    targets = [one for one in all_targets(folder / "material") if not kinds or one.name in kinds]
    inputs = Inputs(targets, seed, folder, findings)
    for target in targets:
        for content in target.seeds:
            with contextlib.suppress(*([] if len(target.seeds) == 1 else [MisfmError])):
                target.read(new_box(folder / "box"), content)
    return inputs


def faults(inputs: Inputs) -> Callable[[Sequence[int]], Iterator[tuple[int, Outcome]]]:
    """Try numbers in forked workers; files that hang or end a worker are kept by the one that survives."""

    def tried(numbers: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        for number, outcome in forked(inputs.attempt, inputs.kind, numbers, HANGS):
            if outcome.result in ("hang", "crash"):
                good, edits = inputs.spoilt(number)
                inputs.keep(number, edited(good, edits), edits, outcome)
            yield number, outcome

    return tried


def main() -> None:
    """Run the campaign."""
    with begun("inputs", __doc__ or "", 100_000) as given:
        inputs = prepare(given.folder, given.arguments.seed, given.home / "findings", given.kinds)
        if (only := given.arguments.only) is not None:
            good, edits = inputs.spoilt(only)
            print(inputs.kind(only), *(edit.what for edit in edits), sep="\n")
            print(inputs.target(only).read(new_box(given.folder / "box"), edited(good, edits)))
            return
        campaign = given.open()
        run_campaign(campaign, faults(inputs), given.arguments.count, batch=500)
        given.publish(campaign)


if __name__ == "__main__":
    main()
