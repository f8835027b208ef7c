"""JSON and YAML of files and options: what they may contain, and how large it may get in memory.

Parsers trust a text: a few bytes make them recurse without end, fill the memory or raise something that
nobody expects. Here every text gives plain values that can be written again, or one exception.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node, ScalarNode

MOST_BYTES = 2**28
"""Of a JSON file: nnssl's list of the 114,570 volumes of OpenMind takes about a quarter of it."""
MOST_VALUES = 10**7
"""In a JSON file, for a value of two bytes becomes an object of up to 72: 0.7 GB at most."""
MOST_YAML_BYTES = 2**20
"""Of settings in YAML; those of a run that lists 10,000 cases take a sixth of it."""
MOST_YAML_VALUES = 50_000
"""In YAML, everything that aliases stand for counted: about two seconds' worth of parsing."""
MOST_DEPTH = 64
"""Lists and mappings within each other: whatever works on them later may recurse."""
MOST_DIGITS = 19
"""Of a whole number, which then fits into 64 bits."""

_SHOWN = 100
"""Characters of a text that a message repeats."""
_UNWRITABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""Escapes in JSON that may stand for what no file name holds and no text file can."""
_SURROGATES = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """A text that cannot be used; the message is a clause, for the sentence of whoever asked for it."""


def read_whole(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a file.

    Raises:
        OSError: it is not there, or cannot be read.
        Malformed: it is a pipe or a device, which might never end, or has more than ``most`` bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Malformed("it is a folder" if path.is_dir() else "it is a pipe or device and no file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Malformed(f"it is larger than the {most:,} bytes that are read of such a file")
    return content


def read_json(path: Path, *, paths: bool = False, nan: bool = False) -> Any:
    """Read a JSON file; see :func:`parse_json`.

    Raises:
        OSError: it is not there, or cannot be read.
        Malformed: see :func:`parse_json`.
    """
    return parse_json(read_whole(path), paths=paths, nan=nan)


def parse_json(content: bytes | str, *, paths: bool = False, nan: bool = False) -> Any:
    """Parse JSON, in UTF-8 with or without a byte-order mark or in UTF-16 or -32.

    Args:
        content: the text.
        paths: whether it holds paths, which may contain bytes that are no UTF-8, as lone surrogates.
        nan: whether NaN and Infinity, which are no JSON, are let through: some programs write them.

    Raises:
        Malformed: too large or nested too deeply, a key that stands twice, a number beyond 64 bits, or text
            that could not be written again.
    """
    try:
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        if text.count(",") >= MOST_VALUES or text.count("[") + text.count("{") >= MOST_VALUES:
            raise Malformed(f"it holds more than {MOST_VALUES:,} values")
        refuse = None if nan else _refuse_constant
        value = json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_constant=refuse,
            parse_float=None if nan else _finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise Malformed(_too_deep()) from None
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not text in {error.encoding.upper()}") from error
    except json.JSONDecodeError as error:
        raise Malformed(str(error)) from error
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _refuse_deep(value)
    if _UNWRITABLE.search(text):
        for one in _texts(value):
            if "\0" in one or (not paths and _SURROGATES.search(one)):
                raise Malformed(f"{_short(one)!a} is not text")
    return value


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see :func:`parse_yaml`.

    Raises:
        OSError: it is not there, or cannot be read.
        Malformed: see :func:`parse_yaml`, or it is not in UTF-8.
    """
    try:
        return parse_yaml(read_whole(path, MOST_YAML_BYTES).decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {error.start} is not text in UTF-8") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML: mappings, lists, text, numbers, true, false and null. A date is text.

    Raises:
        Malformed: no YAML, another tag than of these values, a key that stands twice, aliases that stand for
            too much, nested too deeply, or a number that is infinite or beyond 64 bits.
    """
    if len(text) > MOST_YAML_BYTES:
        raise Malformed(f"it is longer than the {MOST_YAML_BYTES:,} characters that are read of settings")
    try:
        value = yaml.load(text, Loader=_Loader)
    except Malformed:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        said = ", ".join(_short(part) for part in (error.context, error.problem) if part)
        raise Malformed(f"{said}{where}") from error
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # the scanner believes what escapes and versions say
        raise Malformed(_short(" ".join(str(error).split()))) from error
    _refuse_deep(value)
    for one in _texts(value):
        if "\0" in one or _SURROGATES.search(one):
            raise Malformed(f"{_short(one)!a} is not text")
    return value


class _Loader(yaml.SafeLoader):
    """A safe loader that counts, and knows fewer tags."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node as the base class does; an alias counts as much as what it stands for."""
        alias = self.check_event(yaml.AliasEvent)
        before = self._count
        self._count += 0 if alias else 1
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise Malformed(_too_deep())
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise Malformed("an alias stands for something that contains it")
        if alias:
            self._count += self._sizes[id(node)]
        if self._count > MOST_YAML_VALUES:
            raise Malformed(f"it holds more than {MOST_YAML_VALUES:,} values")
        self._sizes.setdefault(id(node), self._count - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Compose a mapping in which each key stands once."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                where = f"in line {key.start_mark.line + 1}"
                raise Malformed(f"it has the key '{_short(name[1])}' twice, {where}")
            seen.add(name)
        return node

    def construct_number(self, node: ScalarNode) -> int | float:
        """Construct a number by its tag, of which there are more notations than Python can hold."""
        try:
            if len(node.value) > _SHOWN:
                raise ValueError
            if node.tag.endswith(":int"):
                return _whole(str(self.construct_yaml_int(node)))
            return _finite(str(self.construct_yaml_float(node)))
        except (ValueError, OverflowError, IndexError):
            raise Malformed(f"'{_short(node.value)}' is no number that can be used") from None

    def construct_truth(self, node: ScalarNode) -> bool:
        """Construct true or false."""
        try:
            return bool(self.construct_yaml_bool(node))
        except KeyError:
            raise Malformed(f"'{_short(node.value)}' is neither true nor false") from None


_TAG = "tag:yaml.org,2002:"
_DROPPED = (f"{_TAG}timestamp", f"{_TAG}value")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    f"{_TAG}null": _Loader.construct_yaml_null,
    f"{_TAG}bool": _Loader.construct_truth,
    f"{_TAG}int": _Loader.construct_number,
    f"{_TAG}float": _Loader.construct_number,
    f"{_TAG}str": _Loader.construct_yaml_str,
    f"{_TAG}seq": _Loader.construct_yaml_seq,
    f"{_TAG}map": _Loader.construct_yaml_map,
    None: _Loader.construct_undefined,
}


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise Malformed(f"it has the key {_short(twice)!a} twice")
    return mapping


def _refuse_constant(text: str) -> None:
    raise Malformed(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise Malformed(f"'{_short(text)}' is no number that can be used")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS + 1 or not -(2**63) <= (number := int(text)) < 2**63:
        raise Malformed(f"'{_short(text)}' is no number that can be used")
    return number


def _too_deep() -> str:
    return f"it is nested more than {MOST_DEPTH} deep"


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [one for node in level for one in _children(node) if isinstance(one, dict | list)]
        if not level:
            return
    raise Malformed(_too_deep())


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _texts(value: Any) -> Iterator[str]:
    """All text in a value, keys included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting.extend(one)
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
