"""Writes docs/licences.md: licences of all that misfm needs, as the installed packages give them.

    python docs/make_licences.py

Walks from the dependencies in pyproject.toml to theirs, as far as they are installed; extras are apart.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
VENDORED = ROOT / "src" / "misfm" / "viewer" / "page" / "niivue-licence.txt"
KNOWN = (
    ("Apache-2.0", r"Apache License,?\s+Version 2\.0"),
    ("MPL-2.0", r"Mozilla Public License,? (Version|v\.?) ?2\.0"),
    ("LGPL", r"GNU (Lesser|LESSER) (General|GENERAL) (Public|PUBLIC) (License|LICENSE)"),
    ("GPL", r"GNU GENERAL PUBLIC LICENSE"),
    ("BSD-3-Clause", r"Neither the name of"),
    ("BSD-2-Clause", r"Redistribution and use in source and binary forms"),
    ("MIT", r"Permission is hereby granted, free of charge"),
    ("ISC", r"Permission to use, copy, modify, and(/or)? distribute this software"),
)
"""What a licence text is known by; of several the one that comes first."""
NAMES = (
    ("Apache-2.0", r"apache"),
    ("MPL-2.0", r"mpl|mozilla"),
    ("LGPL", r"\blgpl|lesser"),
    ("GPL", r"\bgpl|general public"),
    ("BSD", r"\bbsd|3-clause"),
    ("MIT", r"\bmit\b"),
    ("ISC", r"\bisc\b"),
    ("PSF-2.0", r"psf|python software foundation"),
)
"""What the short name of a licence is known by."""
SPDX = r"[A-Za-z]+-[0-9.]+[A-Za-z-]*( (AND|OR|WITH) [A-Za-z0-9.-]+)*"
""""MPL-2.0 AND MIT" and the like."""


def closure(names: list[str]) -> dict[str, Distribution]:
    """Installed packages by name: those named, and what they need on this system."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        todo += [Requirement(text) for text in found[name].requires or ()]
    return found


def licence_of(package: Distribution) -> str:
    """The licence of a package: its expression, else what its short name, classifiers or licence text say."""
    meta = package.metadata
    if expression := meta.get("License-Expression"):
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in meta.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    short = [text for text in (meta.get("License") or "", *classifiers) if 0 < len(text) < 80]
    for text in short:
        if re.fullmatch(SPDX, text):
            return text
        for licence, pattern in NAMES:
            if re.search(pattern, text, re.IGNORECASE):
                return licence if licence != "BSD" else _from_text(package, "BSD")
    return _from_text(package, "; ".join(short) or "not stated")


def _from_text(package: Distribution, otherwise: str) -> str:
    texts = [package.metadata.get("License") or ""]
    for file in package.files or ():
        if re.search(r"licen[cs]e|copying", file.name, re.IGNORECASE) and file.suffix in (
            "",
            ".txt",
            ".md",
            ".rst",
        ):
            path = Path(str(file.locate()))
            texts.append(path.read_text(errors="replace") if path.is_file() else "")
    for text in texts:
        places = {name: found.start() for name, pattern in KNOWN if (found := re.search(pattern, text))}
        if "BSD-3-Clause" in places:  # its last clause is what it is known by
            places["BSD-3-Clause"] = places.pop("BSD-2-Clause", places["BSD-3-Clause"])
        if places:
            return min(places, key=lambda name: places[name])
    return otherwise


def table(packages: dict[str, Distribution], direct: set[str]) -> list[str]:
    """Rows of a table of packages, those that misfm itself needs in ``direct``."""
    rows = ["| package | licence | needed by |", "|---|---|---|"]
    for name in sorted(packages):
        whose = "misfm" if name in direct else ", ".join(sorted(_needing(name, packages)))
        rows.append(f"| {packages[name].metadata['Name']} | {licence_of(packages[name])} | {whose} |")
    return rows


def _needing(name: str, packages: dict[str, Distribution]) -> list[str]:
    found = []
    for other, package in packages.items():
        for text in package.requires or ():
            requirement = Requirement(text)
            fits = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if fits and canonicalize_name(requirement.name) == name:
                found.append(other)
    return found


def vendored() -> list[str]:
    """What ships within the package, by the first words of the licence beside it."""
    said = VENDORED.read_text()
    found = re.search(r"npm package (\S+), version (\S+), unchanged", said)
    assert found is not None
    assert re.search(r"BSD 2-Clause License\n\nCopyright \(c\) 2021, Niivue", said)
    return [
        f"Shipped within the package, for `misfm view`: {found[1]} {found[2]} (BSD-2-Clause),",
        "unchanged, with what is bundled in it (MIT, ISC and BSD-3-Clause); "
        f"[the texts](../{VENDORED.relative_to(ROOT).as_posix()}) lie beside it.",
    ]


def page() -> str:
    """The whole page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"]
    packages = closure(needed)
    direct = {canonicalize_name(Requirement(text).name) for text in needed}
    strong = [name for name, package in packages.items() if re.search(r"\bA?GPL", licence_of(package))]
    weak = [name for name, package in packages.items() if re.search(r"LGPL|MPL", licence_of(package))]
    lines = [
        "# Licences",
        "",
        "Made by `python docs/make_licences.py` from what the installed packages say of themselves. misfm is",
        "under Apache-2.0, the scans of its demo under CC-BY-SA-4.0. What it needs, and what that needs:",
        "",
        *table(packages, direct),
        "",
        f"Under the GPL {'are ' + ', '.join(strong) if strong else 'is none of them'}; under the LGPL or",
        f"MPL, which concern changes of the packages themselves, are {', '.join(sorted(weak))}.",
    ]
    lines += ["", *vendored()]
    for extra, texts in project["optional-dependencies"].items():
        more = {name: one for name, one in closure(texts).items() if name not in packages}
        if extra == "dev" or not more:
            continue
        own = {canonicalize_name(Requirement(text).name) for text in texts}
        lines += [
            "",
            f"Only with the extra `{extra}`:",
            "",
            *table({n: more[n] for n in more if n in own}, own),
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.read_text())
