"""Bring scans into a store, and say how many came to what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misfm.data.ingest import IngestEvent, ingest
from misfm.data.record import IngestSettings
from misfm.terminal import Progress


def ingest_scans(
    sources: Sequence[Path],
    store: Path,
    settings: IngestSettings,
    *,
    workers: int,
    scheduler: str | None,
    pseudonyms: Path | None,
) -> tuple[dict[str, Any], str]:
    """Ingest, showing progress; returns the counts, ready for JSON, and a line that tells them.

    Args and errors are those of :func:`misfm.data.ingest.ingest`.
    """
    with Progress("Ingesting") as progress:

        def show(event: IngestEvent) -> None:
            progress.update(event.done, event.total)
            if event.outcome == "quarantined":
                progress.say(f"quarantined: {event.reason}")
            elif event.outcome == "added" and event.reason:
                progress.say(f"{event.source}: {event.reason}")

        report = ingest(
            sources,
            store,
            settings,
            workers=workers,
            progress=show,
            scheduler=scheduler,
            pseudonyms=pseudonyms,
        )
        for source, reason in report.doubtful:
            progress.say(f"{source}: {reason}")
    counts = {"added": report.added, "skipped": report.skipped, "duplicates": report.duplicates}
    quarantined = [{"source": source, "reason": reason} for source, reason in report.quarantined]
    kinds = ", ".join(f"{count} {kind.upper()}" for kind, count in sorted(report.kinds.items()))
    if report.doubtful:
        kinds += f"; {len(report.doubtful)} doubtful"
    line = (
        f"{store}: {report.added} added{kinds and f' ({kinds})'}, {report.skipped} unchanged, "
        f"{report.duplicates} duplicates, "
        f"{len(report.quarantined)} quarantined"
    )
    repaired = [{"source": source, "notes": notes} for source, notes in report.repaired]
    doubtful = [{"source": source, "reason": reason} for source, reason in report.doubtful]
    more = {"repaired": repaired, "kinds": dict(report.kinds), "doubtful": doubtful}
    return {"store": str(store), **counts, "quarantined": quarantined, **more}, line
