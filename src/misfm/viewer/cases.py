"""What the viewer shows: cases that know how to read themselves, when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from misfm.data.intensity import Kind
from misfm.volume import Volume

Labels = Mapping[str, tuple[int, ...]]
"""Name of each label to its values in label maps: one, or several of a region."""


@dataclass(frozen=True)
class Image:
    """A scan as it was read.

    Attributes:
        volume: (C, D, H, W).
        kinds: of each channel.
        channels: what each is called; may be empty.
        notes: what reading had to repair, a clause each.
    """

    volume: Volume
    kinds: Sequence[Kind]
    channels: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ViewedCase:
    """A case to be looked at. What reads raises a DataError, or an OSError, where something is missing.

    Attributes:
        name: as the page shows it.
        image: reads the scan.
        reference: reads the label map that somebody drew, None where there is none.
        prediction: reads the predicted label map, or makes it of the scan that it is given a reader of, None
            where there is none.
        is_made: whether ``prediction`` makes it, which takes time.
        labels: what values mean; None where nobody says.
        ignore: value of voxels that nobody has judged.
        scores: Dice by label where they are known already.
        notes: what there is to know about the case, a sentence each.
    """

    name: str
    image: Callable[[], Image]
    reference: Callable[[], Volume] | None = None
    prediction: Callable[[Callable[[], Image]], Volume] | None = None
    is_made: bool = False
    labels: Labels | None = None
    ignore: int | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def dice(self) -> float | None:
        """Mean of the known Dice over labels, None where nothing is known."""
        known = [score for score in self.scores.values() if score is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Collection:
    """What a path holds.

    Attributes:
        title: what it is, such as "Run runs/liver".
        cases: at least one.
        notes: what there is to know about all of them, a sentence each.
    """

    title: str
    cases: Sequence[ViewedCase]
    notes: Sequence[str] = ()
