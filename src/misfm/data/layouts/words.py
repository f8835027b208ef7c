"""What names of files say: which case it is, which channel, and whether it is a label map."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CHANNELS = {
    **{"ct": "CT", "pet": "PET", "suv": "PET", "mr": "MR", "mri": "MR"},
    **{"t1": "T1", "t1w": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce", "t1post": "T1ce"},
    **{"t2": "T2", "t2w": "T2", "flair": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR", "pd": "PD"},
    **{"dwi": "DWI", "adc": "ADC", "swi": "SWI", "asl": "ASL", "cbf": "CBF", "dce": "DCE", "bold": "BOLD"},
}
"""Words for a channel, in the order channels get, and what ``dataset.json`` calls it; CT alone means HU."""
PLAIN = frozenset({"image", "images", "img", "scan", "volume", "vol", "data", "orig", "raw", "im"})
"""Words for an image that do not tell its kind."""
LABELS = frozenset(
    {
        *("seg", "segm", "segmentation", "segmentations", "label", "labels", "labelmap", "lbl", "mask"),
        *(
            "masks",
            "gt",
            "truth",
            "groundtruth",
            "annotation",
            "annotations",
            "contour",
            "contours",
            "manual",
        ),
    }
)
"""Words for a label map."""
_WORDS = sorted({*CHANNELS, *PLAIN, *LABELS, "ground_truth", "ground-truth"}, key=len, reverse=True)
_LAST = re.compile(rf"(?P<rest>.+?)[_\-. ]+(?P<word>{'|'.join(_WORDS)})", re.IGNORECASE)
_FIRST = re.compile(rf"(?P<word>{'|'.join(_WORDS)})(?:[_\-. ]+|(?=\d))(?P<rest>.+)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<rest>.+)_(?P<word>\d{4})")


@dataclass(frozen=True)
class Name:
    """A file name taken apart.

    Attributes:
        case: what is left of it without words.
        words: for channel, image or label map, in lower case.
    """

    case: str
    words: tuple[str, ...]

    @property
    def is_label(self) -> bool:
        """Whether it names a label map."""
        return is_label(self.words)

    @property
    def key(self) -> str:
        """What files of the same kind share, whatever the case; empty where there is no word."""
        return "_".join(word for word in self.words if word not in PLAIN)


def is_label(words: Iterable[str]) -> bool:
    """Whether words are of a label map."""
    return any(word.replace("_", "").replace("-", "") in LABELS for word in words)


def take_apart(name: str, *, numbers: bool = False) -> Name:
    """Take a name without ending apart: ``case_3_t1`` is (case_3, t1), ``label0007`` is (0007, label).

    Args:
        name: of a file.
        numbers: whether four digits at the end are the number of a channel.
    """
    words: list[str] = []
    while match := _LAST.fullmatch(name) or (_NUMBERED.fullmatch(name) if numbers and not words else None):
        words.insert(0, match["word"].lower())
        name = match["rest"]
    if match := _FIRST.fullmatch(name):
        words.insert(0, match["word"].lower())
        name = match["rest"]
    return Name(name, tuple(words))


def folder_word(name: str) -> tuple[str, str]:
    """Return the word that a folder is called by, and the end of nnU-Net: ``imagesTr`` is (images, tr)."""
    match = re.fullmatch(r"(.*?)[_-]?(tr|ts)?", name.lower())
    return (match[1], match[2] or "") if match else (name.lower(), "")


def is_known_folder(name: str) -> bool:
    """Whether a folder is called by a word for images, a channel or label maps."""
    word, _ = folder_word(name)
    return word in LABELS or word in PLAIN or word in CHANNELS


def split_key(key: str) -> tuple[str, ...]:
    """Return the words of a key such as ``tumour_seg`` or ``T1-mask``."""
    return tuple(word for word in re.split(r"[_\-. ]+", key.lower()) if word)


def channel_order(keys: Iterable[str]) -> list[str]:
    """Return keys of channels in a fixed order: known ones first."""
    known = list(CHANNELS)
    return sorted(keys, key=lambda key: (known.index(key) if key in known else len(known), key))


def channel_name(key: str) -> str | None:
    """Return what ``dataset.json`` calls a channel, None where only the voxels tell CT from MR."""
    if not key or key in PLAIN or key.isdigit():
        return None
    return CHANNELS.get(key.lower(), key)
