"""Codes of what labels show: SNOMED CT as DICOM lists it for segments, and a private one for the rest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from misfm.augment.sides import side_of
from misfm.text import printable

PRIVATE = "99MISFM"
"""Coding scheme of labels whose name is in none of the lists."""
_LONGEST_CODE, _LONGEST_MEANING = 16, 64
"""Characters that DICOM takes."""
_LISTS = (
    ("AnatomicalStructure", "cid7192"),
    ("AnatomicalStructure", "cid7140"),
    ("AnatomicalStructure", "cid4031"),
    ("MorphologicallyAbnormalStructure", "cid7194"),
    ("Tissue", "cid7166"),
)
"""Categories of segments and the context groups of PS3.16 that list what belongs to each."""
_SYNONYMS = {
    "parotid": "parotid gland",
    "parotis": "parotid gland",
    "submandibular": "submandibular gland",
    "adrenal": "adrenal gland",
    "oesophagus": "esophagus",
    "urinary bladder": "bladder",
    "thyroid gland": "thyroid",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "cancer": "neoplasm",
    "whole tumor": "neoplasm",
    "whole tumour": "neoplasm",
    "enhancing tumor": "enhancing lesion",
    "enhancing tumour": "enhancing lesion",
    "oedema": "edema",
    "ivc": "inferior vena cava",
    "svc": "superior vena cava",
    "csf": "cerebrospinal fluid",
    "small bowel": "small intestine",
    "large bowel": "large intestine",
    "chiasm": "optic chiasm",
    "mandibula": "mandible",
    "fat": "adipose tissue",
    "muscle": "muscle tissue",
    "vertebrae": "vertebra",
}
"""Other words for what the lists have, without sides."""


@dataclass(frozen=True)
class Coding:
    """What a segment is, in codes.

    Attributes:
        category: such as anatomical structure.
        type: such as liver.
        side: left or right of it, where the name tells one and the type does not.
    """

    category: Code
    type: Code
    side: Code | None = None


def coding_of(name: str) -> Coding:
    """Return the codes of a label by its name: "left kidney", "Kidney_L" and "kidneys" are kidneys."""
    for text, side in ((name, None), side_of(name) or (name, None)):
        spaced = _spaced(text)
        if found := _listed().get(_key(spaced)):
            return Coding(*found, getattr(codes.cid247, side.capitalize()) if side else None)
    plain = re.sub(r"\W+", "_", name).strip("_") or "label"
    value = (
        plain if len(plain) <= _LONGEST_CODE else hashlib.sha256(name.encode()).hexdigest()[:_LONGEST_CODE]
    )
    meaning = printable(name)[:_LONGEST_MEANING] or plain
    return Coding(codes.cid7150.AnatomicalStructure, Code(value, PRIVATE, meaning))


@cache
def _listed() -> dict[str, tuple[Code, Code]]:
    """Category and type by the words of a name; what stands in several lists counts as in the first."""
    found: dict[str, tuple[Code, Code]] = {}
    for category, group in _LISTS:
        concepts: dict[str, Any] = getattr(codes, group).concepts
        for keyword, code in concepts.items():
            of = getattr(codes.cid7150, category), code
            found.setdefault(_key(_spaced(keyword)), of)
            found.setdefault(keyword.lower(), of)  # brainstem, which is two words there
    return found


def _spaced(name: str) -> str:
    """ParotidGland and parotid_gland in words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


def _key(name: str) -> str:
    """The words of a name in the singular, in any order, run together."""
    text = " ".join(re.findall(r"[a-z]+[0-9]*|[0-9]+", name.lower()))
    text = _SYNONYMS.get(text, text)
    words = [_SYNONYMS.get(word, word) for word in map(_singular, text.split())]
    return "".join(sorted(" ".join(words).split()))


def _singular(word: str) -> str:
    is_plural = len(word) > 3 and word.endswith("s") and word[-2] not in "aisu"
    return word[:-1] if is_plural else word
