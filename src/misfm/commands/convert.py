"""Bring labelled scans as they lie on a disk into nnU-Net's layout, and say by which rule."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from misfm.data.checks import readable
from misfm.data.convert import UNNAMED, Conversion, carry_out, plan
from misfm.data.dataset import Dataset
from misfm.data.dataset_faults import faults
from misfm.data.layouts import recognise
from misfm.terminal import Progress

_LABELS = 12
"""Labels that a line lists."""
_SHOWN = 4
"""Files of which a dry run says where they would go."""


def convert_source(source: Path, out: Path, *, dry_run: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Convert a folder; run it again to go on with a conversion that was stopped.

    Args:
        source: folder of images and label maps; only read.
        out: folder of the dataset, made where missing.
        dry_run: only say what would be done.

    Returns:
        What was done, ready for JSON, and lines that tell it.

    Raises:
        ConfigError: ``out`` lies in ``source``, or holds other files.
        DataError: a layout that is not known, is ambiguous, or does not fit; a file that cannot be read.
    """
    with readable(source):
        arrangement = recognise(source)
    with Progress("Reading label maps") as progress:
        conversion = plan(arrangement, source, out, progress.update)
    result, lines = _said(conversion, source)
    if dry_run:
        shown = islice(conversion.pieces(), _SHOWN)
        lines += [f"  {target.relative_to(out)} from {piece.source}" for piece, target in shown]
        return {**result, "dry_run": True}, [
            *lines,
            f"Nothing was written to {out}: this was a dry run.",
        ]
    with Progress("Converting") as progress:
        counts, notes = carry_out(conversion, progress.update)
    wrong = faults(Dataset.open(out))
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return {**result, **counts, "faults": wrong}, [*lines, *notes, *wrong, f"{out}: {told}"]


def _said(conversion: Conversion, source: Path) -> tuple[dict[str, Any], list[str]]:
    arrangement, content = conversion.arrangement, conversion.content
    counts = {part: sum(case.part == part for case in arrangement.cases) for part in ("Tr", "Ts")}
    names = ", ".join(content["channel_names"].values())
    listed = [f"{name} {value}" for name, value in content["labels"].items()]
    labels = ", ".join([*listed[:_LABELS], *(["..."] if len(listed) > _LABELS else [])])
    result = {
        "source": str(source),
        "out": str(conversion.out),
        "rule": arrangement.rule,
        "training_cases": counts["Tr"],
        "test_cases": counts["Ts"],
        "channels": content["channel_names"],
        "labels": content["labels"],
    }
    lines = [
        f"Recognised: {arrangement.rule}",
        f"{counts['Tr']} training and {counts['Ts']} test case(s); channels {names}; labels {labels}",
    ]
    notes = [*arrangement.notes]
    if any(name.startswith(UNNAMED) for name in content["labels"]):
        notes.append(
            f"Nothing tells what the labels are called: name them in {conversion.out / 'dataset.json'}. "
            "Names that tell left from right keep a training from mirroring."
        )
    return {**result, "notes": notes}, [*lines, *notes]
