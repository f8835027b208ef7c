"""Kills of every command at any moment: what is left is whole, and done again the result is the same bytes.

    python benchmarks/faults/kills.py --count 1000 --seed 0

A command is killed, started again (with ``--resume`` where it has that) and killed again, up to eight
times, and then left to finish. Most kills are ``SIGKILL``, some ``SIGTERM``, ``SIGINT`` or ``SIGUSR1``, to
the process or its group; half at a random moment, half at the n-th time that something is written, renamed,
synced or committed. After each, every file under a final name must be whole and every store readable; in
the end all files must be those of a run that nobody disturbed. Left out of the comparison:
``environment.json``, ``log.txt``, TensorBoard's files, ``samples_per_s``, ``seconds``, when scans were last
changed, what a probe knows of images by then, and the checkpoint before the last, which after a signal is of
where the run was stopped; of an index
its rows count, not its pages.
"""

from __future__ import annotations

import gc
import importlib
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from random import Random

import torch
from commands import (
    Command,
    all_commands,
    clear,
    contents,
    differing,
    material_commands,
    same_tensors,
    torn_files,
)
from common import Outcome, begun, generator
from material import make_dataset, make_pairs, make_scans, make_weights
from PIL import Image
from processes import PATIENCE, Ended, Kill, run_forked, run_real

from misfm.data.layouts import LAYOUTS
from misfm.data.readers import READERS
from misfm.models.base import NETWORKS
from misfm.pretext.base import PRETEXTS
from misfm.weights.exports import EXPORTS

MOST = 8
"""Kills before a command is left to finish."""
REAL = 0.03
"""Share of the processes that are started, not forked."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody disturbed.

    Attributes:
        seconds: it took.
        events: how often it wrote something.
        files: hashes of what it left.
    """

    seconds: float
    events: int
    files: dict[str, str]


@dataclass
class Kills:
    """Chains of kills.

    Attributes:
        commands: those that are killed.
        seed: of all draws.
        home: folder of everything.
        undisturbed: what commands leave, by name, as far as it is known yet.
    """

    commands: list[Command]
    seed: int
    home: Path
    undisturbed: dict[str, Undisturbed] = field(default_factory=dict)

    def reference(self, command: Command) -> Undisturbed:
        """Run a command once without disturbing it, and keep what it leaves."""
        if command.name not in self.undisturbed:
            clear([command.out])
            ended, events = self.run(command, None, again=False, real=command.processes)
            if ended.status:
                raise SystemExit(f"{command.name} fails although nothing disturbs it: {ended.errors[-2000:]}")
            self.undisturbed[command.name] = Undisturbed(ended.seconds, events, contents(command.out))
            shutil.rmtree(self.kept(command), ignore_errors=True)
            shutil.copytree(command.out, self.kept(command))
        return self.undisturbed[command.name]

    def kept(self, command: Command) -> Path:
        """Where the files of the undisturbed command are kept."""
        return self.home / "kept" / command.out.name

    def run(self, command: Command, kill: Kill | None, *, again: bool, real: bool) -> tuple[Ended, int]:
        """Run a command, for the first time or again."""
        arguments = [*command.arguments, *(["--resume"] if again and command.resumes else [])]
        log = self.home / "log"
        if real or command.processes:
            return run_real(arguments, log, kill), 0
        return run_forked(arguments, log, kill)

    def chain(self, number: int) -> Iterator[tuple[Outcome, str]]:
        """Kill one command until it has finished; yields an outcome and the kind of the end for each kill."""
        draw = generator(self.seed, "chain", number)
        command = draw.choices(self.commands, weights=[one.weight for one in self.commands])[0]
        usual = self.reference(command)
        clear([command.out])
        last = "not hit"
        for attempt in range(MOST):
            real = command.processes or (command.name != "demo" and draw.random() < REAL)
            kill = draw_kill(draw, usual, real)
            ended, _ = self.run(command, kill, again=attempt > 0, real=real)
            if ended.status == 0:
                break
            if not ended.hit:
                yield self.failed(command, ended), last
                return
            last = kill.name + (", started" if real else "")
            yield self.left(command, kill, ended), last
        else:
            ended, _ = self.run(command, None, again=True, real=command.processes)
            if ended.status:
                yield self.failed(command, ended), last
                return
        if (outcome := self.compared(command, usual)) is not None:
            yield outcome, last

    def failed(self, command: Command, ended: Ended) -> Outcome:
        """A command that was killed before could not be done again."""
        lines = ended.errors.strip().splitlines() or [""]
        result = "traceback" if "Traceback" in ended.errors else "not resumed"
        return Outcome(
            command.name, result, f"status {ended.status}: {lines[-1]}"[:600], _place(ended.errors)
        )

    def left(self, command: Command, kill: Kill, ended: Ended) -> Outcome:
        """What a kill has left behind, and how a command that was asked to stop has ended."""
        name = signal.Signals(kill.number).name
        if kill.number != signal.SIGKILL:
            if ended.seconds > PATIENCE:
                return Outcome(command.name, "slow to stop", f"{name}: {ended.seconds:.1f} s", name)
            if "Traceback" in ended.errors and "misfm/cli" in ended.errors:
                last = ended.errors.strip().splitlines()[-1]
                return Outcome(
                    command.name, "traceback", f"{name}: {last}"[:600], f"{name} {_place(ended.errors)}"
                )
            if ended.status not in (0, 1) and "Error: " not in ended.errors and kill.number != signal.SIGKILL:
                said = (ended.errors.strip().splitlines() or ["nothing"])[-1]
                if not _early(ended, kill):
                    return Outcome(
                        command.name, "not saved", f"{name}: status {ended.status}, said {said}"[:600], name
                    )
            wrong = [option for option in options_named(ended.errors) if not takes(command, option)]
            if wrong:
                return Outcome(
                    command.name, "wrong advice", f"{name}: {ended.errors.strip()[-300:]}", wrong[0]
                )
        copy = self.home / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        if command.out.exists():
            shutil.copytree(command.out, copy)
        torn = torn_files(copy) if copy.exists() else []
        if torn:
            return Outcome(
                command.name, "torn", f"{name} at {kill}: {torn[0]}"[:600], Path(torn[0].split(":")[0]).name
            )
        return Outcome(command.name, "survived")

    def compared(self, command: Command, usual: Undisturbed) -> Outcome | None:
        """Compare what a killed command has left in the end with that of an undisturbed one."""
        names = differing(command.out, usual.files)
        if not names:
            return None
        pairs = [(command.out / name, self.kept(command) / name) for name in names]
        alike = all(
            path.suffix in (".pt", ".pth") and path.exists() and same_tensors(path, kept)
            for path, kept in pairs
        )
        detail = "; ".join(
            [", ".join(names[:5]), *filter(None, (first_difference(*pair) for pair in pairs))][:3]
        )
        return Outcome(command.name, "same tensors, other bytes" if alike else "differs", detail, names[0])


def first_difference(path: Path, kept: Path) -> str:
    """The first line of a text that is another than it should be."""
    texts = [one.read_bytes() if one.exists() else b"(missing)" for one in (path, kept)]
    if any(b"\0" in text[:1000] for text in texts):
        return ""
    pairs = zip_longest(*(text.decode(errors="replace").splitlines() for text in texts), fillvalue="(end)")
    return next((f"{found!r} instead of {usual!r}" for found, usual in pairs if found != usual), "")[:300]


def _early(ended: Ended, kill: Kill) -> bool:
    """Whether a started process was hit before it could know what to do: while Python itself started."""
    return ended.status == -kill.number and not ended.errors.strip() and 0 < kill.seconds < 0.3


def _place(errors: str) -> str:
    found = re.findall(r'/misfm/([\w/]+\.py)", line \d+, in (\w+)', errors)
    return ":".join(found[-1]) if found else ""


def options_named(errors: str) -> list[str]:
    """Options that the last line names."""
    lines = errors.strip().splitlines()
    return re.findall(r"--[a-z][a-z-]+", lines[-1]) if lines else []


def takes(command: Command, option: str) -> bool:
    """Whether a command has an option."""
    import typer.main

    from misfm.cli import app

    verb = typer.main.get_command(app).commands[command.arguments[0]]  # type: ignore[attr-defined]
    return any(option in parameter.opts for parameter in verb.params)


def draw_kill(draw: Random, usual: Undisturbed, real: bool) -> Kill:
    """Draw how and when a command is ended."""
    number = signal.SIGKILL if draw.random() < 0.8 else draw.choice(SIGNALS)
    group = draw.random() < 0.3
    if real:
        return Kill(number, group, seconds=draw.uniform(0, usual.seconds + 3.0))
    if draw.random() < 0.5 or not usual.events:
        return Kill(number, group, seconds=draw.uniform(0, usual.seconds))
    delay = draw.choice([0.0, 0.0, draw.expovariate(1000)])
    return Kill(number, group, event=draw.randint(1, usual.events), after=draw.random() < 0.5, delay=delay)


def load_everything() -> None:
    """Import what commands import, so that those forked from this process need not."""
    torch.set_num_threads(1)
    verbs = (
        "compare",
        "demo",
        "twins",
        "folds",
        "predict",
        "info",
        "catalogue",
        "evaluate",
        "export",
        "probe",
    )
    others = (
        "torch.utils.tensorboard",
        "lightning_fabric",
        "torch._dynamo",
        "matplotlib.figure",
        "contourpy",
    )
    for name in (
        "misfm.cli",
        *(f"misfm.commands.{verb}" for verb in verbs),
        *others,
        "matplotlib.backends.backend_agg",
    ):
        importlib.import_module(name)
    for registry in (PRETEXTS, NETWORKS, READERS, EXPORTS, LAYOUTS):
        registry.names()  # which imports what is registered
    Image.init()
    gc.collect()
    gc.freeze()  # a fork need not copy what lives as long as this process


def prepare(folder: Path, seed: int, kinds: Sequence[str] = ()) -> Kills:
    """Make what the commands work on, by commands."""
    load_everything()
    make_scans(folder / "scans", 6)
    make_dataset(folder / "dataset")
    make_pairs(folder / "pairs", folder / "dataset")
    make_weights(folder / "resenc.safetensors", "resenc", 3, (16, 32, 32))
    for arguments in material_commands(folder):
        ended, _ = run_forked(arguments, folder / "log", None)
        if ended.status:
            raise SystemExit(f"{arguments} fails: {ended.errors[-2000:]}")
    commands = [one for one in all_commands(folder) if not kinds or one.name in kinds]
    return Kills(commands, seed, folder)


def main() -> None:
    """Run the campaign."""
    with begun("kills", __doc__ or "", 1000) as given:
        kills = prepare(given.folder, given.arguments.seed, given.kinds)
        if (only := given.arguments.only) is not None:
            print(*kills.chain(only), sep="\n")
            return
        campaign, count = given.open(), given.arguments.count
        while (tried := sum(sum(row.values()) for row in campaign.counts.values())) < count:
            for outcome, end in kills.chain(campaign.done):
                campaign.numbers[end] = campaign.numbers.get(end, 0) + 1
                if campaign.note(campaign.done, outcome):
                    what = f"{outcome.kind}: {outcome.result} {outcome.place}: {outcome.detail}"
                    print(f"FINDING {campaign.done} {what}", flush=True)
            campaign.done += 1
            campaign.save()
            print(f"kills {tried}/{count} in {campaign.done} chains", flush=True)
        given.publish(campaign)


if __name__ == "__main__":
    main()
