"""JSON and YAML of others become plain values or one clause, quickly, whatever is in them."""

import json
import math
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from misfm.documents import (
    MOST_DEPTH,
    MOST_YAML_VALUES,
    Malformed,
    parse_json,
    parse_yaml,
    read_json,
    read_whole,
    read_yaml,
)

JSON = {"labels": {"background": 0, "Leber ä": 1}, "spacing": [0.5, -1e-3], "none": None, "yes": True}


def test_json_reads_as_written_in_any_unicode(tmp_path):
    text = json.dumps(JSON, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-le"):
        (tmp_path / "a.json").write_bytes(text.encode(encoding))
        assert read_json(tmp_path / "a.json") == JSON
    assert parse_json('"\\ud83d\\ude00"') == "😀"


def test_yaml_reads_as_written(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(JSON), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == JSON
    shared = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    assert parse_yaml(shared) == yaml.safe_load(shared)
    assert parse_yaml("") is None


@pytest.mark.parametrize("text", ["2020-13-45", "2020-02-03", "2020-02-03 10:00:00", "="])
def test_what_looks_like_a_date_is_text(text):
    assert parse_yaml(f"licence: {text}") == {"licence": text}


def laughs(levels):
    names = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(["a0: &a0 [ha, ha]", *names])


def merges(levels):
    names = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(["a0: &a0 {ha: 1}", *names])


def chain(levels):
    """Aliases that lead from list to list, none of them nested deeply itself."""
    names = [f"a{i}: &a{i} {'[' * 9}*a{i - 1}{']' * 9}" for i in range(1, levels)]
    return "\n".join(["a0: &a0 []", *names])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("- " * 10_000, "nested more than 64 deep"),
        ("{a: " * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        (chain(9), "nested more than 64 deep"),
        (laughs(30), "more than 50,000 values"),
        (merges(30), "more than 50,000 values"),
        (f"[{'a,' * (MOST_YAML_VALUES + 1)}]", "more than 50,000 values"),
        ("&a [*a]", "contains it"),
        ("a: 1\nb: 2\na: 3", "the key 'a' twice, in line 3"),
        ("!!python/object/apply:os.system [ls]", "python/object"),
        ("!!timestamp 2020-13-45", "timestamp"),
        ("9" * 5000, "'999.*…' is no number"),
        ("1" + ":59" * 30, "is no number"),
        ("!!int ''", "'' is no number"),
        ("!!float x", "'x' is no number"),
        ("!!bool x", "neither true nor false"),
        (".inf", r"'\.inf' is no number"),
        (".nan", "is no number"),
        ("1.0e+999", "is no number"),
        ('"\\0"', "is not text"),
        ('"\\ud800"', "is not text"),
        ("\ud800", "special characters"),
        ('"\\UFFFFFFFF"', "too large"),
        ("? [a]\n: 1", "unhashable key in line 1"),
        ("[1", "expected ',' or ']'"),
        ("a: b: c", "not allowed here in line 1"),
        ("x" * 2**21, "longer than"),
    ],
)
def test_yaml_that_is_refused(text, reason):
    with pytest.raises(Malformed, match=reason) as refused:
        parse_yaml(text)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' twice"),
        ("1" * 5000, "is no number"),
        ("9" * 19, "is no number"),
        ("1e999", "is no number"),
        ("[NaN]", "NaN is no number in JSON"),
        ("-Infinity", "-Infinity is no number in JSON"),
        ('["\\ud800"]', "is not text"),
        ('{"\\u0000": 1}', "is not text"),
        (b"\xff{}", "byte 0 is not text in UTF-8"),
        (b'"\xed\xa0\x80"', "byte 1 is not text in UTF-8"),
        ("", "Expecting value"),
        ("[1", "line 1 column 3"),
        ("[" + "," * 10**7, "more than 10,000,000 values"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(Malformed, match=reason) as refused:
        parse_json(text)
    assert len(str(refused.value)) < 300


def test_as_deep_as_allowed_is_read():
    assert parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH) is not None
    assert parse_yaml("[" * (MOST_DEPTH - 1) + "1" + "]" * (MOST_DEPTH - 1)) is not None


def test_lists_of_paths_may_hold_bytes_that_are_no_text():
    name = os.fsdecode(b"caf\xe9")
    assert parse_json(json.dumps([name]), paths=True) == [name]
    with pytest.raises(Malformed, match="is not text"):
        parse_json('"\\u0000"', paths=True)


def test_plans_of_others_may_hold_nan():
    assert math.isnan(parse_json("NaN", nan=True))


def test_only_files_of_some_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    assert read_whole(tmp_path / "file", 4) == b"1234"
    with pytest.raises(Malformed, match="larger than the 3 bytes"):
        read_whole(tmp_path / "file", 3)
    with pytest.raises(Malformed, match="folder"):
        read_whole(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "none")
    with pytest.raises(Malformed, match="no file"):
        read_json(type(tmp_path)(os.devnull))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Malformed, match="pipe"):
        read_yaml(tmp_path / "pipe")


def test_yaml_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"licence: caf\xe9")
    with pytest.raises(Malformed, match="byte 12 is not text in UTF-8"):
        read_yaml(tmp_path / "a.yaml")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_whatever_json_can_hold_survives(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


SNIPPETS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "'",
        '"',
        "\\",
        "\n",
        " ",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "!!",
        "!",
        "%",
        "?",
        "|",
    ),
    *(
        "tag:yaml.org,2002:",
        "int",
        "float",
        "timestamp",
        "bool",
        "null",
        "1",
        "0x",
        "1:59",
        "e9",
        ".",
        "_",
        "#",
    ),
    *(
        "\\ud800",
        "\\u0000",
        "\\UFFFFFFFF",
        "NaN",
        "Infinity",
        "true",
        "~",
        "a",
        "\ufeff",
        "\x85",
        "---",
        "...",
    ),
]
MIXED = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=30).map("".join)


@settings(max_examples=500, deadline=1000)
@given(MIXED)
def test_whatever_yaml_is_given_is_read_or_refused(text):
    try:
        value = parse_yaml(text)
    except Malformed:
        return
    json.dumps(value, allow_nan=False, skipkeys=True).encode()


@settings(max_examples=500, deadline=1000)
@given(MIXED.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40))
def test_whatever_json_is_given_is_read_or_refused(content):
    try:
        value = parse_json(content)
    except Malformed:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
