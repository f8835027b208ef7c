"""What ``dataset.json`` may say of single cases, in keys that nnU-Net passes over.

``"annotated_labels": {"CASE": ["liver", "spleen"]}`` lists the labels that were contoured in a case; in cases
that are not listed all of them were. ``"subjects": {"CASE": "SUBJECT"}`` tells whose scan a case is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from misfm.errors import DataError
from misfm.registry import closest

ANNOTATED_KEY = "annotated_labels"
SUBJECTS_KEY = "subjects"

_BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")


def parse_annotated(
    content: Mapping[str, Any], labels: Mapping[str, int], path: Path
) -> dict[str, frozenset[int]]:
    """Return the annotated label values, 0 included, of the cases that are listed.

    Args:
        content: of ``dataset.json``.
        labels: value of each label.
        path: the file, for messages.

    Raises:
        DataError: another form, or a name that is no label.
    """
    listed = content.get(ANNOTATED_KEY, {})
    if not isinstance(listed, dict) or not all(isinstance(names, list) for names in listed.values()):
        raise DataError(f'{path} must give {ANNOTATED_KEY} as {{"CASE": ["label", ...]}}; correct it.')
    for case, names in listed.items():
        for name in names:
            if str(name) not in labels:
                raise DataError(
                    f"{path} lists '{name}' as annotated in case {case}, which is no label; "
                    f"{closest(str(name), list(labels))}"
                )
    return {case: frozenset({0, *(labels[str(name)] for name in names)}) for case, names in listed.items()}


def parse_subjects(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the subject of each case that is listed.

    Raises:
        DataError: another form.
    """
    listed = content.get(SUBJECTS_KEY, {})
    if not isinstance(listed, dict) or not all(isinstance(name, str | int) for name in listed.values()):
        raise DataError(f'{path} must give {SUBJECTS_KEY} as {{"CASE": "SUBJECT"}}; correct it.')
    return {case: str(subject) for case, subject in listed.items()}


def check_cases(named: Iterable[str], known: Iterable[str], path: Path) -> None:
    """Refuse names of cases that the dataset has not.

    Raises:
        DataError: says which name, and the nearest case.
    """
    cases = set(known)
    for name in named:
        if name not in cases:
            near = difflib.get_close_matches(name[:100], sorted(cases), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "correct the name or add the image."
            raise DataError(f"{path} names a case '{name}' that has no image; {hint}")


def guess_subject(case_name: str) -> str:
    """Return the ``sub-XXX`` that a name of BIDS begins with, else the name itself."""
    match = _BIDS_SUBJECT.match(case_name)
    return match[0] if match else case_name
