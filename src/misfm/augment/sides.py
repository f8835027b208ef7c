"""Left and right in the names of labels, in many languages and spellings.

A name tells its side by a word that stands for one, whatever else is labelled. Shorter words and single
letters mean many things: they tell sides only where two names differ in nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

Side = Literal["left", "right"]


def _plain(text: str) -> str:
    """A text without accents: Windows and macOS write these differently, and many people leave them out."""
    apart = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("Ø", "O"))
    return unicodedata.normalize("NFC", "".join(c for c in apart if unicodedata.category(c) != "Mn"))


_START, _END = r"(?<![^\W\d_])", r"(?![^\W\d_])"
"""Places before and behind which no letter stands."""
_ANYWHERE: dict[Side, str] = {
    "left": r"(?<!c)left(?!over)|links|gauches?|sinist(?:er|r(?:um|ae|[aeio]))?|izquierd(?:[ao]s?)?"
    r"|esquerd(?:[ao]s?)?|esquerra|左|왼|좌측|ひだり|يسر|يسار|שמאל|बाय|ซ้าย",
    "right": r"(?<![bfp])right|rechts|dext(?:er|r(?:um|ae|[aeio]))|droite?s?|derech(?:[ao]s?)?"
    r"|direit(?:[ao]s?)?|右|오른|우측|みぎ|يمن|يمين|ימין|ימני|दाय|ขวา",
}
"""Words so long that they also tell a side within compounds; but cleft and bright tell none."""
_WORDS: dict[Side, str] = {
    "left": r"link(?:e[rsnm]?)?|venstre|vanst(?:er|ra)|izqd[oa]|lew(?:[aeyi]|ej|ego|ym)|lijev[aoei]"
    r"|stang[aiu]?|kiri|vasen|vasem\w*|αριστερ\w*|лев(?:ый|ая|ое|ой|ого|ую|ые)|слева"
    r"|лів(?:ий|а|е|ої)|ляв[ао]?",
    "right": r"recht(?:e[rsnm]?)?|ho[jy]re|hoger|hogra|dch[oa]|destr[oaie]|dreta|praw(?:[aeyi]|ej|ego|ym)"
    r"|desn[aoi]|drept|dreapta|kanan|oike\w*|δεξι\w*|прав(?:ый|ая|ое|ой|ого|ую|ые|ий|а|е|ої)|справа"
    r"|дясн[ао]|десен",
}
_SHORT: dict[Side, str] = {"left": "lh|lt|l|sin|sx", "right": "rh|rt|r|dext?|dx"}
"""Not before a number: L1 is a vertebra, and a level of lymph nodes."""
_LATERAL = re.compile(
    "|".join(
        rf"(?P<{name}_{side}>{pattern})"
        for side in ("left", "right")
        for name, pattern in (
            ("anywhere", f"(?i:{_plain(_ANYWHERE[side])})"),
            ("word", f"{_START}(?i:{_plain(_WORDS[side])}){_END}"),
            ("short", rf"{_START}(?i:{_SHORT[side]})(?![^\W\d_]|[ _.-]?\d)"),
            ("capital", f"(?<=[a-z])(?:{'L|Lt|LT' if side == 'left' else 'R|Rt|RT'})$"),
            ("start", f"^(?:{'L|Lt' if side == 'left' else 'R|Rt'})(?=[A-Z][a-z])"),
        )
    )
)
"""A word for a side, or a short one that stands alone: lh_hippocampus, ParotidL, LtParotid."""
_IN_PAIRS = (
    *(("li", "re"), ("bal", "jobb"), ("sol", "sag"), ("izq", "der"), ("trai", "phai"), ("os", "od")),
    *(("gch", "drt"), ("esq", "dir"), ("lev[aeoiy]?", "prav[aeoiy]?")),
    *(("lev[aeo]", "desn[aeo]"), ("چپ", "راست"), ("vlevo", "vpravo")),
)
"""Words of other meanings, too, which count where both sides are there."""
_LETTERS = (("g", "d"), ("e", "d"), ("i", "d"), ("l", "p"), ("v", "h"))
"""Likewise gauche and droit, esquerdo and direito, izquierdo and derecho, lewy and prawy, venstre and hoejre:
where nothing but these two stands in that place, for A to H may also count groups."""


def side_of(name: str) -> tuple[str, Side] | None:
    """Return what a name says beside the side, in lower case, and the side; None where it tells none."""
    plain = _plain(name)
    found = _LATERAL.search(plain)
    if found is None or found.lastgroup is None:
        return None
    rest = plain[: found.start()] + plain[found.end() :]
    return rest.lower(), "left" if found.lastgroup.endswith("left") else "right"


def sides_of(names: Sequence[str]) -> dict[str, dict[Side, int]]:
    """Find the names that tell left from right.

    Returns:
        Places in ``names`` by side, by what the names say beside it. A word for a side may stand alone; what
        has other meanings, too, is there only with its counterpart: Niere li and Niere re, PAROTIDL and
        PAROTIDR.
    """
    found: dict[str, dict[Side, int]] = {}
    open_readings: dict[str, dict[Side, int]] = {}
    letters: dict[str, set[str]] = {}
    for i, name in enumerate(names):
        if told := side_of(name):
            found.setdefault(told[0], {}).setdefault(told[1], i)
            continue
        folded = _plain(name).casefold()
        for letter in re.finditer(rf"{_START}[a-z]{_END}", folded):
            letters.setdefault(_gap(folded, letter), set()).add(letter[0])
        for key, side in _possible_sides(folded):
            open_readings.setdefault(key, {}).setdefault(side, i)
    for key, sides in open_readings.items():
        kind, _, rest = key.partition(":")
        is_letter = kind.startswith("letter")
        if len(sides) == 2 and not (is_letter and len(letters[rest]) > 2):
            found.setdefault(key, sides)
    return found


def tell_sides(names: Iterable[str]) -> bool:
    """Whether any of the names tells left from right."""
    return bool(sides_of(list(names)))


def _possible_sides(folded: str) -> Iterable[tuple[str, Side]]:
    """Sides that a name may tell, each under what its counterpart would share."""
    for i, words in enumerate(_IN_PAIRS):
        yield from _matches(f"words {i}", words, folded)
    for i, one in enumerate(_LETTERS):
        yield from _matches(f"letter {i}", one, folded)
    for i, character in enumerate(folded):
        if character in "lr좌우":
            yield f"character:{folded[:i]}*{folded[i + 1 :]}", "left" if character in "l좌" else "right"


def _matches(kind: str, words: tuple[str, str], folded: str) -> Iterable[tuple[str, Side]]:
    sides: tuple[Side, Side] = ("left", "right")
    for word, side in zip(words, sides, strict=True):
        for match in re.finditer(f"{_START}(?:{word}){_END}", folded):
            yield f"{kind}:{_gap(folded, match)}", side


def _gap(text: str, match: re.Match[str]) -> str:
    return f"{text[: match.start()]}*{text[match.end() :]}"
