"""Ways to spoil a file: of any bytes, of text, of JSON, and of the fields of headers.

An edit takes the bytes of a file and returns others; which ones is drawn when the edit is made.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pydicom

INTEGERS = [0, 1, -1, 2, 3, 7, 127, 255, 256, 32767, -32768, 65535, 10**5, 2**31 - 1, -(2**31), 2**32, 2**63]
FLOATS = [0.0, -1.0, 1e-30, 1e-3, 1e3, 1e4, 1e6, 1e30, 3.4e38, -3.4e38, float("nan"), float("inf"), 0.001]
_WORDS = (
    "null|~|true|no|[]|{}|[|}|²|١|-1|0|1e9|1e400|-1e400|nan|.nan|.inf|NaN|Infinity|"
    "2020-13-45|2020-01-01|1:30:00|0x1F|0o17|=|<<|<<: 1|? a|%YAML 9|---|&a [*a]|*a|&a a|"
    "!!python/object:os.system|!!binary x|!!timestamp x|!!int x|!!set {a}|!!omap [a]|"
    "../../ESC|/ESC|x/../../ESC|..|.|CON|${HOME}|hf://a/..|builtin|name|phantom:-1|labels:/"
)
WORDS = [
    *_WORDS.split("|"),
    *[
        "",
        " ",
        "\0",
        "\t",
        "\x1b[31m",
        "\ufeff",
        "\ud800",
        "a\nb",
        "9" * 5000,
        "a" * 300,
        "\\ud800",
        "\\",
        '"',
        "'",
    ],
    *["[" * 3000, "{a: " * 500, "- " * 3000, '{"a":' * 3000],
    "[&a [x,x,x,x,x,x,x,x,x],"
    + ",".join(f"&{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9))
    + "]",
]
"""Fragments that have made readers of YAML, JSON and headers fail."""


@dataclass(frozen=True)
class Edit:
    """One change to the bytes of a file, and what it is."""

    what: str
    apply: Callable[[bytes], bytes]

    def of(self, content: bytes) -> bytes:
        """The bytes after the change; the same where an earlier edit has left nothing that it applies to."""
        try:
            return self.apply(content)
        except (ValueError, LookupError, TypeError, RecursionError):
            return content


Editor = Callable[[bytes, Random], Edit]
"""Draws an edit that makes sense for the bytes it is given."""


def any_bytes(content: bytes, draw: Random) -> Edit:
    """Flip, overwrite, cut, double, move or insert bytes anywhere."""
    size = max(1, len(content))
    start = draw.randrange(size) if draw.random() < 0.5 else min(size - 1, int(draw.expovariate(1 / 60)))
    length = min(size - start, draw.choice([1, 1, 2, 4, 8, 64, 512, 4096]))
    new = draw.choice([b"\0", b"\xff", b"\x80", b"\x7f", draw.randbytes(1)]) * length
    other = draw.randrange(size)
    bit = 1 << draw.randrange(8)
    choices: list[tuple[str, Callable[[bytes], bytes]]] = [
        (
            "flip a bit",
            lambda b: b[:start] + bytes([b[start] ^ bit]) + b[start + 1 :] if start < len(b) else b,
        ),
        ("overwrite", lambda b: b[:start] + new + b[start + length :]),
        ("random bytes", lambda b: b[:start] + draw_bytes + b[start + length :]),
        ("cut the end off", lambda b: b[:start]),
        ("take out", lambda b: b[:start] + b[start + length :]),
        ("double", lambda b: b[:start] + b[start : start + length] * 2 + b[start + length :]),
        ("move", lambda b: b[:start] + b[other : other + length] + b[start + length :]),
        ("insert", lambda b: b[:start] + new + b[start:]),
        ("append", lambda b: b + new * 8),
    ]
    draw_bytes = draw.randbytes(length)
    what, apply = draw.choices(choices, weights=[4, 2, 2, 2, 1, 1, 1, 1, 1])[0]
    return Edit(f"{what} at {start}, {length} bytes", apply)


def any_text(content: bytes, draw: Random) -> Edit:
    """Put a fragment in the place of a word, a number or a line, or between two."""
    text = content.decode("latin-1")
    words = _tokens(text)
    start, end = draw.choice(words) if words else (0, 0)
    word = draw.choice([draw.choice(WORDS), str(draw.choice(INTEGERS)), repr(draw.choice(FLOATS))])
    new = word.encode("utf-8", "surrogatepass")
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    choices: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("replace a word", lambda b: b[:start] + new + b[end:]),
        ("insert a word", lambda b: b[:start] + new + b[start:]),
        ("drop a line", lambda b: b"\n".join(b.split(b"\n")[:line] + b.split(b"\n")[line + 1 :])),
        ("double a line", lambda b: b"\n".join(b.split(b"\n")[: line + 1] + b.split(b"\n")[line:])),
        ("replace all", lambda b: new),
        ("bad UTF-8", lambda b: b[:start] + b"\xff\xfe" + b[start:]),
    ]
    what, apply = draw.choices(choices, weights=[12, 2, 2, 1, 1, 1])[0]
    return Edit(f"{what}: {word[:40]!r} at {start}", apply)


def _tokens(text: str) -> list[tuple[int, int]]:
    found, start = [], None
    for place, letter in enumerate(text[:20000] + " "):
        if letter.isalnum() or letter in "._+-/":
            start = place if start is None else start
        elif start is not None:
            found.append((start, place))
            start = None
    return found


def _value(draw: Random) -> Any:
    nested = f"@nested {draw.choice([30, 990, 3000])}@"  # in the text: nothing that writes JSON nests so deep
    choices = [
        draw.choice(INTEGERS),
        draw.choice(FLOATS),
        draw.choice(WORDS),
        draw.choice(
            [None, True, False, [], {}, "", [[]], [None], {"": None}, {"name": 1}, [1, 2, 3], ["CT", "MR"]]
        ),
        nested,
        [draw.choice(FLOATS) for _ in range(3)],
        draw.choice(["../../ESC", "/tmp/ESC", "x/../../ESC", "\ud800", "\x1b]0;x\x07", "a\0b"]),
        {draw.choice(WORDS): draw.choice(WORDS)},
    ]
    return draw.choices(choices, weights=[3, 2, 3, 3, 1, 1, 2, 1])[0]


def any_json(content: bytes, draw: Random) -> Edit:
    """Replace, drop, rename or double a part of a JSON tree, or change its text."""
    if draw.random() < 0.25:
        return any_text(content, draw)
    try:
        places = list(_places(json.loads(content)))
    except (ValueError, RecursionError):
        return any_bytes(content, draw)
    path = draw.choice(places)
    value, key = _value(draw), draw.choice([*WORDS[:40], "1", "name", "\ud800", "../../ESC"])
    action = draw.choices(["replace", "drop", "rename", "add"], weights=[6, 2, 2, 1])[0]

    def apply(content: bytes) -> bytes:
        try:
            changed = _edited(json.loads(content), path, action, key, value)
            text = json.dumps(changed, ensure_ascii=False)
            text = re.sub(r'"@nested (\d+)@"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)
            return text.encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError, LookupError, TypeError):
            return content

    return Edit(f"{action} {'/'.join(map(str, path))}: {repr(key)[:40]} {repr(value)[:60]}", apply)


def any_json_line(content: bytes, draw: Random) -> Edit:
    """Edit one line of a file that has a JSON tree in each."""
    lines = content.splitlines(keepends=True)
    if not lines or draw.random() < 0.2:
        return any_bytes(content, draw)
    line = draw.randrange(len(lines))
    inner = any_json(lines[line], draw)

    def apply(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[line : line + 1] = [inner.apply(one).rstrip(b"\n") + b"\n" for one in lines[line : line + 1]]
        return b"".join(lines)

    return Edit(f"line {line}: {inner.what}", apply)


def safetensors_header(content: bytes, draw: Random) -> Edit:
    """Edit the JSON in front of the tensors, or the description within it."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content):
        return any_bytes(content, draw)
    described = draw.random() < 0.7
    inner = any_json(_header(content, described), draw)

    def apply(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        if length > len(content):
            return content
        header = inner.apply(_header(content, described))
        if described:
            whole = json.loads(content[8 : 8 + length])
            whole["__metadata__"]["misfm"] = header.decode("latin-1")
            header = json.dumps(whole).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + length :]

    return Edit(f"header: {inner.what}", apply)


def _header(content: bytes, described: bool) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        return str(json.loads(header)["__metadata__"]["misfm"]).encode() if described else header
    return header


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _places(value, (*path, key))
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            yield from _places(value, (*path, place))


def _edited(tree: Any, path: Sequence[Any], action: str, key: str, value: Any) -> Any:
    if not path:
        return value if action == "replace" else tree
    parent = tree
    for part in path[:-1]:
        parent = parent[part]
    if action == "replace":
        parent[path[-1]] = value
    elif action == "drop":
        del parent[path[-1]]
    elif action == "rename" and isinstance(parent, dict):
        parent[key] = parent.pop(path[-1])
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        parent.append(value)
    return tree


MOST = 32 << 20
"""Bytes of a packed file that are edited."""
NIFTI = {
    **{
        ("i", 0): INTEGERS,
        ("h", 70): [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304],
    },
    **{("h", 40 + 2 * axis): [0, 1, 2, 3, 4, 7, 20, 255, 1000, 32767, -1, -32768] for axis in range(8)},
    **{("f", 76 + 4 * axis): FLOATS for axis in range(8)},
    **{
        ("f", offset): FLOATS for offset in (108, 112, 116, 256, 260, 264, 268, 272, 276, *range(280, 328, 4))
    },
    **{("h", offset): [0, 1, 2, 3, 5, -1, 32767] for offset in (72, 252, 254)},
    **{("b", offset): [0, 1, 2, 3, 8, 10, 127, -128] for offset in (39, 123, 344, 345, 346)},
}
"""Fields of a NIfTI header, as format and offset, and values that have made trouble there."""


def nifti_field(content: bytes, draw: Random) -> Edit:
    """Set one field of a NIfTI header."""
    (form, offset), values = draw.choice(list(NIFTI.items()))
    value = draw.choice(values)
    if form in "ihb":
        value = int(value) & (256 ** struct.calcsize(form) - 1)
        new = value.to_bytes(struct.calcsize(form), "little")
    else:
        new = struct.pack("<f", value)
    return Edit(f"header {form}{offset} = {value}", lambda b: b[:offset] + new + b[offset + len(new) :])


def within_gzip(editor: Editor) -> Editor:
    """Edit what a gzip file holds; at times the packed bytes themselves."""

    def edit(content: bytes, draw: Random) -> Edit:
        if draw.random() < 0.15:
            return any_bytes(content, draw)
        if draw.random() < 0.05:  # a bomb: much that packs into little
            many = draw.choice([1 << 20, 1 << 24, 1 << 27])
            return Edit(f"{many} zeros more", lambda b: b + _zeros(many))
        inner = editor(_unpacked(content), draw)
        return Edit(f"inside: {inner.what}", lambda b: _packed(inner.apply(_unpacked(b))))

    return edit


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1, mtime=0)


@functools.lru_cache
def _zeros(many: int) -> bytes:
    return _packed(bytes(many))


def _unpacked(content: bytes) -> bytes:
    """What a gzip file holds; the file itself where it is none any more, or a bomb."""
    with contextlib.suppress(zlib.error):
        stream = zlib.decompressobj(wbits=31)
        unpacked = stream.decompress(content, MOST)
        if stream.eof and not stream.unused_data:
            return unpacked
    return content


def header_text(content: bytes, draw: Random) -> Edit:
    """Change a word or line of a header of text in front of voxels."""
    end = min(place for place in (content.find(b"\n\n"), content.find(b"LOCAL"), 2000) if place > 0)
    inner = any_text(content[:end], draw)
    return Edit(inner.what, lambda b: inner.apply(b[:end]) + b[end:])


def _steps(dataset: Any, draw: Random) -> list[int | str]:
    """The way to an element that was drawn: keywords, and numbers of items."""
    steps: list[int | str] = []
    while keywords := [element.keyword for element in dataset if element.keyword]:
        steps.append(draw.choice(keywords))
        items = dataset[steps[-1]].value if dataset[steps[-1]].VR == "SQ" else []
        if not items or draw.random() < 0.2:
            break
        steps.append(draw.randrange(len(items)))
        dataset = items[steps[-1]]
    return steps


def dicom_element(content: bytes, draw: Random) -> Edit:
    """Set, take out or double one element of a DICOM file, in whatever depth of its sequences."""
    steps: list[int | str] = []
    with contextlib.suppress(Exception):  # there is no end to what a spoilt file makes pydicom raise
        steps = _steps(pydicom.dcmread(io.BytesIO(content)), draw)
    if not steps:
        return any_bytes(content, draw)
    keyword = str(steps[-1])
    number = str(draw.choice([*INTEGERS, *FLOATS]))[:16]
    value = draw.choice(
        [number, [number] * 2, [number] * 3, [number] * 6, "", "x", "\x1b[31m", "²", "A" * 64, None]
    )

    def apply(content: bytes) -> bytes:
        try:
            whole = dataset = pydicom.dcmread(io.BytesIO(content))
            for step in steps[:-1]:
                dataset = dataset[step] if isinstance(step, int) else getattr(dataset, step)
            if value is None:
                delattr(dataset, keyword)
            elif dataset[keyword].VR in ("US", "UL", "SS", "SL"):
                setattr(dataset, keyword, int(float(number)) & 0xFFFF)
            else:
                setattr(dataset, keyword, value)
            buffer = io.BytesIO()
            whole.save_as(buffer)
            return buffer.getvalue()
        except Exception:  # a value that cannot be written: then there is no such file
            return content

    return Edit(f"{keyword} = {str(value)[:40]!r}", apply)


def one_of(*editors: Editor) -> Editor:
    """An edit by one of several editors, each as likely."""
    return lambda content, draw: draw.choice(editors)(content, draw)


def spoil(content: bytes, editor: Editor, draw: Random) -> list[Edit]:
    """Draw one to four edits, each of which sees what those before it have left."""
    edits = []
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4])):
        edit = editor(content, draw)
        content = edit.of(content)
        edits.append(edit)
    return edits


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """The file after all edits."""
    for edit in edits:
        content = edit.of(content)
    return content
