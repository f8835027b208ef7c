"""What a conversion notes beside its dataset, in ``convert.json``: of what each file was made, the labels.

By it a later conversion into the same folder makes again what has another source, keeps the numbers of
labels, and tells what somebody has edited in ``dataset.json`` from what was written there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfm.data.case_notes import parse_annotated, parse_subjects
from misfm.data.dataset_json import parse_labels
from misfm.data.layouts import Piece
from misfm.data.readers import files_beside
from misfm.documents import read_json
from misfm.errors import ConfigError, DataError
from misfm.files import write_json

FILE = "convert.json"


@dataclass(frozen=True)
class Record:
    """Of a folder that was converted.

    Attributes:
        source: the folder that was converted.
        content: what ``dataset.json`` would hold if nobody had edited it.
        made_of: for each file of the dataset, a hash of the names, sizes and times of what it was made of.
    """

    source: str
    content: Mapping[str, Any]
    made_of: Mapping[str, str]


def read_record(out: Path, source: Path) -> Record:
    """Return what an earlier conversion noted; without content where there was none.

    Raises:
        ConfigError: it was one of another source.
        DataError: a damaged file.
    """
    file, here = out / FILE, str(source.resolve())
    if not file.exists():
        return Record(here, {}, {})
    try:
        noted = read_json(file, paths=True)
        record = Record(noted["source"], noted["content"], noted["made_of"])
        if not all(isinstance(part, dict) for part in (record.content, record.made_of)):
            raise ValueError("a part is no object")
        if record.content:
            parse_labels(record.content, file)
            parse_subjects(record.content, file)
            parse_annotated(record.content, record.content["labels"], file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); delete it, and files are made again.") from error
    if record.source != here:
        raise ConfigError(
            f"{out} was converted from {record.source}, not from {here}; choose another folder for --out, "
            f"or, if the source was moved, correct 'source' in {file}."
        )
    return record


def write_record(out: Path, record: Record) -> None:
    """Write it atomically."""
    write_json(
        out / FILE,
        {"source": record.source, "content": dict(record.content), "made_of": dict(record.made_of)},
    )


def digest(piece: Piece, source: str) -> str:
    """Return a hash of the names below ``source``, sizes and times of all files that a piece is made of.

    Raises:
        DataError: one of them is gone.
    """
    noted: list[Any] = [piece.channel]
    for file in piece.made_of or (piece.source, *files_beside(piece.source)):
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({error.strerror}); put it back, or correct it."
            ) from error
        path = os.path.join(os.path.realpath(file.parent), file.name)
        noted.append([os.path.relpath(path, source), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(noted).encode()).hexdigest()[:32]
