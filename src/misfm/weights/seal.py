"""The checksum in our weights files: one flipped bit is found, whatever it hits.

A safetensors file is eight bytes of length, a header in JSON and the values. The checksum is of the values,
of what the header says of them, and of our description. It stands in the metadata beside the description,
where readers that do not know it pass over it; files without one are of earlier versions.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfm.documents import Malformed, parse_json
from misfm.errors import WeightsError

METADATA_KEY = "misfm"
CHECKSUM_KEY = "misfm_checksum"
_METADATA = "__metadata__"
_ALIGNMENT = 8


def split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header of a safetensors file and its values.

    Raises:
        Malformed: the header is none.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = parse_json(content[8:end])
    if not isinstance(header, dict) or not isinstance(header.get(_METADATA) or {}, dict):
        raise Malformed("its header is no mapping")
    return header, memoryview(content)[end:]


def metadata_of(header: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file."""
    return dict(header.get(_METADATA) or {})


def sealed(content: bytes, description: str) -> tuple[bytes, memoryview]:
    """Give a safetensors file its description and their checksum.

    Args:
        content: the file; its metadata, if any, are replaced.
        description: JSON of what is in it.

    Returns:
        What the file begins with, always the same for the same content, and the values that follow.
    """
    header, values = split(content)
    metadata = {METADATA_KEY: description, CHECKSUM_KEY: checksum(header, description, values)}
    whole = {_METADATA: metadata, **_tensors(header)}
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, values


def checksum(header: Mapping[str, Any], description: str, values: memoryview) -> str:
    """Return the CRC-32 of a file's content; what else the metadata holds plays no part."""
    said = json.dumps([description, _tensors(header)], sort_keys=True).encode()
    return f"crc32:{zlib.crc32(values, zlib.crc32(said)):08x}"


def check(path: Path, header: Mapping[str, Any], values: memoryview) -> None:
    """Compare what has been read from ``path`` with its checksum, if it has one.

    Raises:
        WeightsError: the file is damaged.
    """
    metadata = metadata_of(header)
    # A name that is nearly the checksum's is the checksum's, damaged: a file must not lose it unnoticed.
    known = (METADATA_KEY, CHECKSUM_KEY)
    first, last = CHECKSUM_KEY[:7], CHECKSUM_KEY[7:]
    spoilt = [key for key in metadata if key not in known and (key.startswith(first) or key.endswith(last))]
    recorded = metadata.get(CHECKSUM_KEY)
    fits = recorded is None or recorded == checksum(header, metadata.get(METADATA_KEY, ""), values)
    if spoilt or not fits:
        raise WeightsError(
            f"{path} is damaged: its checksum does not fit its content; copy or train it again."
        )


def _tensors(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != _METADATA}
