"""What ``dataset.json`` holds when a folder is converted again: what was there, and what is new behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from misfm.data.case_notes import ANNOTATED_KEY, SUBJECTS_KEY, parse_annotated, parse_subjects
from misfm.data.dataset_json import parse_channels, parse_labels
from misfm.data.layouts import Arrangement, Piece
from misfm.errors import DataError
from misfm.text import one_line
from misfm.volume import Volume

Json = Mapping[str, Any]
_ORDER = "regions_class_order"


def number_structures(arrangement: Arrangement, known: Json, there: Json) -> Arrangement:
    """Give structures that are known by their names the numbers they have in label maps; new ones follow.

    Args:
        arrangement: what was recognised; only one whose labels are ``by_name`` is changed.
        known: what an earlier conversion wrote into ``dataset.json``; empty where there was none.
        there: what is in it now; its values are taken.
    """
    if not arrangement.by_name or arrangement.labels is None or not known:
        return arrangement
    named = _named(known)
    values = {"background": 0, **{name: value for name, value in named.items() if isinstance(value, int)}}
    taken = {0, *values.values(), *_all_values(_named(there) if there else {})}
    for name in arrangement.labels:
        if name not in values:
            values[name] = max(taken) + 1
            taken.add(values[name])
    numbers = {old: values[name] for name, old in arrangement.labels.items()}
    own = sorted(set(arrangement.labels) - {"background"})
    more = dict(arrangement.more)
    labelled = [case.name for case in arrangement.cases if case.label is not None]
    if set(values) - {"background"} > set(own):
        more[ANNOTATED_KEY] = dict.fromkeys(labelled, own) | more.get(ANNOTATED_KEY, {})
    cases = [
        replace(case, label=_renumbered(case.label, numbers)) if case.label is not None else case
        for case in arrangement.cases
    ]
    return replace(arrangement, labels=values, cases=tuple(cases), more=more)


def _renumbered(piece: Piece, numbers: Mapping[int, int]) -> Piece:
    return replace(piece, read=partial(_read_renumbered, piece, numbers))


def _read_renumbered(piece: Piece, numbers: Mapping[int, int]) -> Volume:
    assert piece.read is not None
    volume = piece.read()
    kind = np.uint8 if max(numbers.values()) <= 255 else np.int16
    table = np.zeros(max(numbers) + 1, kind)
    for old, new in numbers.items():
        table[old] = new
    return volume.with_data(table[volume.data])


def merge(new: Json, there: Json, before: Json, file: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` is to hold.

    Args:
        new: what it would hold if there were none.
        there: what it holds.
        before: what the earlier conversion would have written; empty where that is unknown.
        file: for messages.

    Raises:
        DataError: ``there`` is damaged, or has no label for a value that cannot be added to it.
    """
    parse_labels(there, file)
    channels = parse_channels(there, file)
    labels = _merge_labels(new, there, before, file)
    notes = {
        ANNOTATED_KEY: _merge_annotated(new, there, before, labels["labels"], file),
        SUBJECTS_KEY: _merge_subjects(new, there, before, file),
    }
    kept = {key: value for key, value in there.items() if value != before.get(key) or key in new}
    for key in (_ORDER, *notes):
        kept.pop(key, None)
    edited = there.get("channel_names") != before.get("channel_names")
    names = dict(enumerate(channels)) if edited and len(channels) == len(new["channel_names"]) else None
    fixed = {
        "channel_names": {str(key): name for key, name in names.items()} if names else new["channel_names"],
        "numTraining": new["numTraining"],
        "file_ending": new["file_ending"],
    }
    untouched = {
        key: value for key, value in new.items() if key not in there or there[key] == before.get(key)
    }
    for key in (_ORDER, *notes):
        untouched.pop(key, None)
    content = {
        **kept,
        **untouched,
        **fixed,
        **labels,
        **{key: value for key, value in notes.items() if value},
    }
    return {key: content[key] for key in [*(key for key in new if key in content), *content]}


def _merge_labels(new: Json, there: Json, before: Json, file: Path) -> dict[str, Any]:
    """The labels, and the order of regions where there are some."""
    keys = ("labels", _ORDER)
    if all(there.get(key) == before.get(key) for key in keys):
        return {key: new[key] for key in keys if key in new}
    labels = _named(there)
    taken = _all_values(labels)
    for name, value in new["labels"].items():
        lacking = sorted(_values(value) - taken)
        if not lacking:
            continue
        regions = isinstance(value, list) or any(isinstance(one, list) for one in labels.values())
        if regions or name in labels:
            raise DataError(
                f"{file} has no label for value {lacking[0]}, which is in '{one_line(name)}' of the source; "
                "add one under 'labels', by a name that is not there yet."
            )
        labels[name] = value
        taken |= {value}
    return {"labels": labels, **({_ORDER: there[_ORDER]} if _ORDER in there else {})}


def _named(content: Json) -> dict[str, Any]:
    """Labels as names and values, whichever way round they stand."""
    labels = content["labels"]
    if labels and all(isinstance(value, str) for value in labels.values()):
        return {value: int(key) for key, value in labels.items()}
    return dict(labels)


def _values(value: Any) -> set[int]:
    return {int(one) for one in (value if isinstance(value, list) else [value])}


def _all_values(labels: Json) -> set[int]:
    return {one for value in labels.values() for one in _values(value)}


def _merge_annotated(new: Json, there: Json, before: Json, labels: Json, file: Path) -> dict[str, Any]:
    """The structures of cases that have not all; names of the source become those that their values have."""
    named = {str(value): name for name, value in labels.items()}
    source = {name: named.get(str(value), name) for name, value in new["labels"].items()}

    def translated(content: Json) -> dict[str, list[str]]:
        listed = content.get(ANNOTATED_KEY, {})
        return {
            case: [name if name in labels else source.get(name, name) for name in names]
            for case, names in listed.items()
        }

    parse_annotated(there, dict.fromkeys([*labels, *source], 0), file)
    now, old, made = translated(there), translated(before), translated(new)
    merged = {}
    for case in [*now, *(case for case in made if case not in now)]:
        kept = now.get(case) if now.get(case) != old.get(case) else made.get(case)
        if kept is not None:
            merged[case] = kept
    return merged


def _merge_subjects(new: Json, there: Json, before: Json, file: Path) -> dict[str, str]:
    """Subjects that stand there stay; a new case has that of the cases of its subject, or a new one."""
    parse_subjects(there, file)
    merged: dict[str, str] = dict(there.get(SUBJECTS_KEY, {}))
    made: Mapping[str, str] = new.get(SUBJECTS_KEY, {})
    groups = {made[case]: merged[case] for case in made if case in merged}
    fresh = (f"subject-{number:03d}" for number in count(1))
    for case, subject in made.items():
        if case in merged or case in before.get(SUBJECTS_KEY, {}):
            continue
        if subject not in groups:
            used = {str(one) for one in (*merged.values(), *groups.values())}
            groups[subject] = (
                subject if subject not in used else next(one for one in fresh if one not in used)
            )
        merged[case] = groups[subject]
    return merged
