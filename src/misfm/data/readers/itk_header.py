"""What headers of NRRD and MetaImage say of where their voxels lie, looked at before ITK opens anything.

ITK opens whatever file a header names, pipes and devices too, and takes memory for whatever it promises.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from misfm.data.checks import check_regular
from misfm.errors import DataError

_MOST = 1 << 20
"""Bytes that a header may have."""
_MOST_LINE, _MOST_PATH = 500, 800
"""Bytes of a field of NRRD and of a file's path. ITK ends the whole process where it has to complain of a
thousand, so whatever else is wrong with such a file could not be said."""
_MOST_AXES = 4
_PACKED = {"gzip", "gz"}


@dataclass(frozen=True)
class Voxels:
    """Where voxels lie.

    Attributes:
        image_io: what ITK reads the header with, by its content; left to itself, it goes by names, too.
        file: that holds them, the header's own or another.
        start: where they begin in it.
        packed: by gzip or zlib.
        plain: they are bytes from there on, packed or not; if not, they are written in another way.
        big_endian: the order of their bytes.
    """

    image_io: str
    file: Path
    start: int
    packed: bool
    plain: bool
    big_endian: bool


def find_voxels(path: Path) -> Voxels:
    """Read where the header of an NRRD or MetaImage file says its voxels are.

    Raises:
        DataError: a header without end, or voxels in several files, outside of the header's folder, or in
            something that is no file.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(_MOST)
    return _of_nrrd(content, path) if content.startswith(b"NRRD") else _of_metaimage(content, path)


def _of_nrrd(content: bytes, path: Path) -> Voxels:
    fields, end = _nrrd_fields(content, path)
    name, encoding = fields.get("datafile", ""), fields.get("encoding", "").lower()
    file = _beside(path, name) if name else path
    for one in (path, file):
        if len(os.fsencode(one)) > _MOST_PATH:
            raise DataError(
                f"{one} has a path of more than {_MOST_PATH} bytes, with which NRRD is not read; move it to "
                "a folder with a shorter one."
            )
    return Voxels(
        image_io="NrrdImageIO",
        file=file,
        start=0 if name else end,
        packed=encoding in _PACKED,
        plain=encoding in {"raw", *_PACKED} and not {"lineskip", "byteskip"} & fields.keys(),
        big_endian=fields.get("endian", "").lower() == "big",
    )


def _of_metaimage(content: bytes, path: Path) -> Voxels:
    fields, end = _metaimage_fields(content, path)
    name = fields["elementdatafile"]
    is_own = name.upper() == "LOCAL"
    msb = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", ""))
    return Voxels(
        image_io="MetaImageIO",
        file=path if is_own else _beside(path, name),
        start=end if is_own else 0,
        packed=_is_true(fields.get("compresseddata", "")),
        plain=_is_true(fields.get("binarydata", "true")) and fields.get("headersize", "0") == "0",
        big_endian=_is_true(msb),
    )


def _is_true(text: str) -> bool:
    """As ITK reads it."""
    return text[:1] in ("T", "t", "1")


def _beside(path: Path, name: str) -> Path:
    """The file that a detached header names; only one, and only in the header's folder or below."""
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path} spreads its voxels over several files; save the scan as one file.")
    named = Path(name)
    if named.is_absolute() and named.parent.resolve() == path.parent.resolve():
        named = Path(named.name)
    if named.is_absolute() or ".." in named.parts or "\0" in name:
        raise DataError(
            f"{path} takes its voxels from {name}, outside of its folder; put both files into one folder and "
            "correct the header."
        )
    check_regular(path.parent / named)
    return path.parent / named


def _nrrd_fields(content: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields without spaces in their names, and where the header ends: at an empty line or the file's end."""
    end = re.search(rb"(\r\n|\n|\r)\1", content)
    if end is None and len(content) == _MOST:
        raise DataError(f"{path} cannot be read: its header has no end; export it again.")
    lines = _lines(content[: end.start()] if end else content)
    if any(len(os.fsencode(line)) > _MOST_LINE and not _is_free_text(line) for line in lines):
        raise DataError(
            f"{path} cannot be read: a line of its header has more than {_MOST_LINE} bytes; export it again."
        )
    pairs = [line.partition(":") for line in lines[1:] if not line.startswith("#")]
    fields = _unique([(key, value) for key, _, value in pairs], path)
    if fields.get("dimension", "") not in {str(axes) for axes in range(1, _MOST_AXES + 1)}:  # of 16, ITK dies
        raise DataError(
            f"{path} cannot be read: its dimension is missing, wrong or above {_MOST_AXES}; correct it."
        )
    return fields, end.end() if end else len(content)


def _is_free_text(line: str) -> bool:
    """Whether a line of NRRD is a comment, a description, or a pair of key and value of somebody's own."""
    return line.startswith(("#", "content: ")) or ":=" in line.partition(": ")[0]


def _metaimage_fields(content: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields up to the one that says where the voxels are, which is the last, and where it ends."""
    end = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:]([^\r\n]*)(\r\n|\n|\r|\Z)", content)
    if end is None:
        raise DataError(f"{path} cannot be read: its header names no ElementDataFile; export it again.")
    pairs = [re.split("[=:]", line, maxsplit=1) for line in _lines(content[: end.end()])]
    fields = _unique([(pair[0], pair[-1]) for pair in pairs], path)
    axes, sides = fields.get("ndims", ""), fields.get("dimsize", "").split()
    if "elementtype" not in fields or str(len(sides)) != axes or len(sides) > _MOST_AXES:
        raise DataError(
            f"{path} cannot be read: NDims, DimSize or ElementType is missing or wrong; correct it."
        )
    return fields, end.end()


def _lines(header: bytes) -> list[str]:
    return os.fsdecode(header).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _unique(pairs: list[tuple[str, str]], path: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, value in pairs:
        name = key.replace(" ", "").replace("\t", "").lower()
        if name.endswith("datafile") and name in fields:  # which of them holds is anybody's guess
            raise DataError(f"{path} cannot be read: its header names two files of voxels; correct it.")
        fields[name] = value.strip()
    return fields
