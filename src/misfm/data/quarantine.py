"""Scans that stood aside: what is known of each, and whether whoever has looked at one can put it back.

Some refusals are judgement: a scan may look like a label map and be none. Those can be released, and the next
ingest takes the scan without asking again, as long as its files are what they were. What cannot be read, or
shows nothing, no review makes usable.
"""

from __future__ import annotations

from datetime import UTC, datetime

from misfm.data.scan import ScanSource
from misfm.errors import DataError
from misfm.settings import Settings
from misfm.volume import FloatTriple, Shape, Volume

_MODALITIES = ("CT", "MR", "PT", "NM", "US")


class Doubtful(DataError):
    """A scan that may be what it should be, for all that seems odd; see ``Evidence.is_judgement``."""


class Evidence(Settings):
    """What is known of a quarantined scan; holds no name, so that it goes with pseudonyms."""

    when: str
    """Time of the ingest that refused it, UTC."""
    stamp: str
    """Number, size and last change of its files."""
    is_judgement: bool
    """Whether it can be released."""
    shape: Shape | None = None
    """Voxels along (D, H, W), where it could be read."""
    spacing: FloatTriple | None = None
    """mm per voxel along (D, H, W)."""
    intensities: tuple[float, float] | None = None
    """Lowest and highest value."""
    modality: str | None = None
    """As its header says, where that is CT, MR, PT, NM or US."""


class Refusal(Settings):
    """Why a scan cannot be used."""

    reason: str
    """A sentence."""
    evidence: Evidence
    """What is known of it."""


class Release(Settings):
    """A scan that somebody has looked at and put back."""

    source: str
    """Where it came from."""
    stamp: str
    """Number, size and last change of its files then: others are not released."""
    reason: str
    """Why it had been quarantined."""
    when: str
    """Time of its release, UTC."""


def refuse(scan: ScanSource, reason: str, *, volume: Volume | None = None, judged: bool = False) -> Refusal:
    """Gather what is known of a scan that cannot be used.

    Args:
        scan: that one.
        reason: a sentence.
        volume: the scan as read, where it could be.
        judged: whether the reason is a judgement.
    """
    evidence = Evidence(
        when=now(),
        stamp=scan.stamp,
        is_judgement=judged,
        shape=None if volume is None else volume.shape,
        spacing=None if volume is None else volume.spacing,
        intensities=None if volume is None else (float(volume.data.min()), float(volume.data.max())),
        modality=scan.modality if scan.modality in _MODALITIES else None,
    )
    return Refusal(reason=reason, evidence=evidence)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
