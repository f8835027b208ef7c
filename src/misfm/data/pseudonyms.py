"""Pseudonyms: a store that names no patient, and a key file elsewhere that says whose scan is whose.

A pseudonym stands for the path of a scan and for its case. It is drawn at random, so that not even the order
of names shows, and is the same whenever the key file is the same.
"""

from __future__ import annotations

import csv
import io
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from misfm import locks
from misfm.data.readers import stem
from misfm.data.scan import ScanSource
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.files import atomic_write
from misfm.terminal import logger

_COLUMNS = ["pseudonym", "source", "case"]
_PRIVATE = 0o600
_PLAIN = re.compile(r"[a-z]+(-[a-z]+)?|-?\d+(\.\d+)?(e[+-]?\d+)?D?|NaN|RGB|DICOM|NIfTI|nnU-Net|GiB|HU|CT|MR")
"""Words and numbers that a sentence may have; whatever else is in it may come from a file."""
_NOBODY = {
    *("scan", "scans", "image", "images", "label", "labels", "map", "maps", "mask", "masks"),
    *("file", "files", "data", "dicom", "pipe", "ct", "mr"),
}
"""Words of folders that name no patient."""


def give_pseudonyms(scans: Sequence[ScanSource], key_path: Path, store_path: Path) -> list[ScanSource]:
    """Return scans with a pseudonym each: that of the key file, or a new one that is added there.

    Args:
        scans: from ``find_scans``.
        key_path: a CSV file, made where missing, for its owner's eyes only; other processes wait meanwhile.
        store_path: folder of the store, outside of which the key file has to lie.

    Raises:
        ConfigError: the key file lies in the store, or is not the one that the store's scans are in.
        DataError: the key file cannot be read or written, or is another file.
    """
    if key_path.resolve().is_relative_to(store_path.resolve()):
        raise ConfigError(f"--pseudonyms {key_path} lies in the store, which must not hold names; move it.")

    def waiting() -> None:
        logger.info("Another process adds to %s: waiting until it is done.", key_path)

    lock = key_path.with_name(f".{key_path.name}.lock")
    with locks.hold(lock, f"Another process adds to {key_path}.", waiting=waiting):
        known = read_keys(key_path) if key_path.exists() else {}
        taken = {pseudonym for pseudonym, _ in known.values()}
        _check_is_of(key_path, taken, store_path)
        added = {}
        for scan in scans:
            if scan.source not in known:
                added[scan.source] = (_draw(taken), scan.case)
        if added:
            _write_keys(key_path, {**known, **added})
    keys = {**known, **added}
    return [replace(scan, pseudonym=keys[scan.source][0], case=keys[scan.source][0]) for scan in scans]


def _check_is_of(key_path: Path, pseudonyms: set[str], store_path: Path) -> None:
    """Refuse a key file that knows no scan of a store: all of them would get a second pseudonym."""
    if not (store_path / "store.json").exists():
        return
    store = Store.open(store_path)
    there = {*store.records().sources} | {source for source, _ in store.quarantined()}
    if store.pseudonymous and there and not there & pseudonyms:
        raise ConfigError(
            f"--pseudonyms {key_path} has none of the {len(there)} scans of {store_path}; give the file that "
            "they were ingested with."
        )


def read_keys(path: Path) -> dict[str, tuple[str, str]]:
    """Pseudonym and case by source, from a key file.

    Raises:
        DataError: it cannot be read, or is no key file.
    """
    try:
        table = io.StringIO(path.read_bytes().decode(), newline="")
        rows = [row for row in csv.reader(table, strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a list of pseudonyms ({error}); give another file."
        ) from error
    keys = {row[1]: (row[0], row[2]) for row in rows[1:] if len(row) == len(_COLUMNS)}
    if rows[:1] != [_COLUMNS] or len({pseudonym for pseudonym, _ in keys.values()}) < len(rows) - 1:
        raise DataError(
            f"{path} is no list of pseudonyms as misfm writes it ({','.join(_COLUMNS)}, each once); give "
            "another file, or one that does not exist yet."
        )
    return keys


def without_names(reason: str, scan: ScanSource) -> str:
    """Return the reason of a refusal with nothing in it that may name a patient.

    What libraries say is given in brackets, and goes; so do names and whatever else is neither a plain word
    nor a number.
    """
    files = scan.files
    for name in sorted({str(file) for file in files}, key=len, reverse=True):
        reason = reason.replace(name, scan.pseudonym)
    while (shorter := re.sub(r" ?\([^()]*\)", "", reason)) != reason:
        reason = shorter
    secret = {part.lower() for file in files for name in (*file.parts, stem(file)) for part in _words(name)}
    secret -= _NOBODY
    kept = []
    for word in reason.split():
        plain = word.rstrip(".,:;")
        is_open = plain == scan.pseudonym or (_PLAIN.fullmatch(plain) and plain.lower() not in secret)
        kept.append(word if is_open else "…" + word[len(plain) :])
    return " ".join(kept)


def _words(name: str) -> list[str]:
    return [name, *re.split(r"[\W_]+", name)]


def _draw(taken: set[str]) -> str:
    while (pseudonym := f"scan-{secrets.token_hex(4)}") in taken:
        pass
    taken.add(pseudonym)
    return pseudonym


def _write_keys(path: Path, keys: dict[str, tuple[str, str]]) -> None:
    table = io.StringIO(newline="")
    rows = [(pseudonym, source, case) for source, (pseudonym, case) in keys.items()]
    csv.writer(table).writerows([_COLUMNS, *sorted(rows)])
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else _PRIVATE
    with atomic_write(path) as temporary:
        temporary.chmod(mode)
        temporary.write_bytes(table.getvalue().encode())
