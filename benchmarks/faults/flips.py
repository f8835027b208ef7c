"""Damage to files that misfm wrote: bits flipped, files cut short, blanked, lost, or in each other's place.

    python benchmarks/faults/flips.py --count 10000 --seed 0

Whatever reads the file afterwards must refuse it in a sentence, or give exactly what it gave before (the
damage hit nothing, or what was lost was found again: harmless), or what an earlier checkpoint says
(healed). A volume that was refused must be mended by ingesting again. Files that only people read, such as
reports, are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from common import Outcome, begun, forked, generator, judge_error, run_campaign
from written import Group, all_groups


@dataclass(frozen=True)
class Damage:
    """What is done to one file.

    Attributes:
        what: in words.
        change: the new content; None takes the file away.
        other: file that gets the old content in turn.
    """

    what: str
    change: Callable[[bytes], bytes] | None
    other: Path | None = None


def draw_damage(content: bytes, others: Sequence[Path], losses: bool, draw: Random) -> Damage:
    """Draw what happens to a file; two of three times one bit flips."""
    size = max(1, len(content))
    place, bit = draw.randrange(size), 1 << draw.randrange(8)
    length = draw.choice([1, 16, 512, 4096])
    kind = draw.choices(["bit", "byte", "cut", "blank", "empty", "lost", "swap"], [66, 8, 10, 8, 2, 2, 4])[0]
    if kind == "swap" and others:
        other = draw.choice(others)
        return Damage(f"swapped with {other.name}", lambda old: other.read_bytes(), other)
    if kind == "lost" and losses:
        return Damage("lost", None)
    if kind in ("empty", "lost"):
        return Damage("emptied", lambda old: b"")
    if kind == "cut":
        return Damage(f"cut at {place}", lambda old: old[:place])
    if kind == "blank":
        return Damage(
            f"{length} bytes blank at {place}",
            lambda old: old[:place] + bytes(len(old[place : place + length])) + old[place + length :],
        )
    mask = bit if kind != "byte" else draw.randrange(1, 256)
    return Damage(
        f"byte {place} xor {mask:#04x}",
        lambda old: old[:place] + bytes([old[place] ^ mask]) + old[place + 1 :] if old else old,
    )


@dataclass(frozen=True)
class Flips:
    """Faults of one seed.

    Attributes:
        groups: files that are read together.
        seed: of all draws.
        home: where the files lie; what is damaged is put back from the copies in ``kept``.
        kept: copies.
    """

    groups: Sequence[Group]
    seed: int
    home: Path
    kept: Path

    def group(self, number: int) -> Group:
        """What a fault hits."""
        draw = generator(self.seed, "flips", number)
        return draw.choices(self.groups, weights=[group.weight for group in self.groups])[0]

    def kind(self, number: int) -> str:
        """The name of what a fault hits."""
        return self.group(number).name

    def fault(self, number: int) -> tuple[Path, Damage]:
        """The file that a fault hits, and the damage."""
        draw, group = generator(self.seed, "damage", number), self.group(number)
        files = sorted(group.files)
        path = draw.choice(files)
        same = [*group.partners] or [other for other in files if other.suffixes == path.suffixes]
        others = [other for other in same if other != path] if group.swaps else []
        return path, draw_damage(self.copy_of(path).read_bytes(), others, group.losses, draw)

    def copy_of(self, path: Path) -> Path:
        """Where the undamaged file is kept."""
        return self.kept / path.relative_to(self.home)

    def attempt(self, number: int) -> Outcome:
        """Damage a file, read it as the commands do, and put everything back."""
        group, (path, damage) = self.group(number), self.fault(number)
        old = path.read_bytes()
        what = f"{path.relative_to(self.home)} {damage.what}"
        try:
            new = None if damage.change is None else damage.change(old)
            if new == old:
                return Outcome(group.name, "harmless")
            if damage.other is not None:
                damage.other.write_bytes(old)
            path.unlink() if new is None else path.write_bytes(new)
            outcome = self.judge(group)
        finally:
            for folder in group.folders:
                shutil.rmtree(folder)
                shutil.copytree(self.copy_of(folder), folder)
        detail = f"{what}: {outcome.detail}" if outcome.detail else what
        return Outcome(group.name, outcome.result, detail[:600], outcome.place)

    def judge(self, group: Group) -> Outcome:
        """Read what was damaged."""
        try:
            found = group.read()
        except Exception as error:
            outcome = judge_error(group.name, error)
            if outcome.result == "refused" and group.mend is not None:
                return self.mended(group, outcome)
            return outcome
        if found == group.expected:
            return Outcome(group.name, "harmless")
        return Outcome(group.name, "healed" if found in group.earlier else "silent")

    def mended(self, group: Group, refused: Outcome) -> Outcome:
        """Check that the command which wrote the files mends what was refused."""
        assert group.mend is not None
        try:
            group.mend()
            same = group.read() == group.expected
        except Exception as error:
            outcome = judge_error(group.name, error)
            return Outcome(group.name, "not mended", f"{refused.detail} | {outcome.detail}", outcome.place)
        return refused if same else Outcome(group.name, "not mended", refused.detail, "other content")


def prepare(folder: Path, seed: int, kinds: Sequence[str] = ()) -> Flips:
    """Make all files, and copies of them."""
    home, kept = folder / "home", folder / "kept"
    groups = [group for group in all_groups(home) if not kinds or group.name in kinds]
    shutil.copytree(home, kept)
    return Flips(groups, seed, home, kept)


def faults(flips: Flips) -> Callable[[Sequence[int]], Iterator[tuple[int, Outcome]]]:
    """Try numbers in forked workers."""
    return lambda numbers: forked(flips.attempt, flips.kind, numbers)


def main() -> None:
    """Run the campaign."""
    with begun("flips", __doc__ or "", 10_000) as given:
        flips = prepare(given.folder, given.arguments.seed, given.kinds)
        if (only := given.arguments.only) is not None:
            print(*flips.fault(only), flips.attempt(only), sep="\n")
            return
        campaign = given.open()
        run_campaign(campaign, faults(flips), given.arguments.count, batch=200)
        given.publish(campaign)


if __name__ == "__main__":
    main()
