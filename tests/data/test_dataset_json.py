"""Whatever dataset.json and the files beside it hold, reading them works or ends in one sentence."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misfm.commands.info import describe_path
from misfm.data.dataset import Dataset
from misfm.data.label_maps import TABLE, read_names, read_table
from misfm.data.record import IngestSettings
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.errors import DataError, MisfmError

WHOLE = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1},
    "file_ending": ".nii.gz",
    "annotated_labels": {"a": ["liver"]},
    "subjects": {"a": "sub-1"},
}


@pytest.fixture
def folder(tmp_path):
    """A dataset of one case, read by its names only."""
    for part, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_bytes(b"")
    (tmp_path / "dataset.json").write_text(json.dumps(WHOLE))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"²": "liver", "0": "background"}}, "gives label '²' the value 'liver'"),
        ({"labels": {"9" * 5000: "liver", "0": "background"}}, "labels are whole numbers from 0 to 32,767"),
        ({"labels": {"background": 0, "liver": 10**12}}, "the value 1000000000000; labels are whole numbers"),
        ({"labels": {str(i): f"label {i}" for i in range(40_000)}}, "names 40,000 labels"),
        ({"channel_names": {}}, "must hold 'channel_names'"),
        ({"channel_names": [1]}, "must hold 'channel_names'"),
        ({"channel_names": {"²": "CT"}}, "must hold 'channel_names'"),
        ({"file_ending": "/../../x"}, "gives file_ending as '/../../x'; write one such as '.nii.gz'"),
        ({"file_ending": ""}, "gives file_ending as ''"),
        ({"file_ending": 5}, "gives file_ending as '5'"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, change, message):
    (folder / "dataset.json").write_text(json.dumps(WHOLE | change))
    with pytest.raises(DataError) as refused:
        Dataset.open(folder)
    assert str(folder / "dataset.json") in str(refused.value)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 600 + len(str(folder))


@pytest.mark.parametrize(
    "text", ["[" * 10_000, '{"a": 1, "a": 2}', "\ufffe", "NaN", '{"channel_names": "\\ud800"}']
)
def test_what_is_no_json_is_refused(folder, text):
    (folder / "splits_final.json").write_text(text)
    assert any("splits_final.json" in fault for fault in describe_path(folder)["faults"])
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        describe_path(folder)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt(draw, value):
    """A value with one thing in it replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(spoilt(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        return [draw(spoilt(value[0])), *value[1:]]
    return draw(ODD)


each = settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def only_sentences(use, *arguments):
    try:
        use(*arguments)
    except MisfmError as error:
        return str(error)
    return ""


@each
@given(content=spoilt(WHOLE))
def test_any_description_of_a_dataset_is_read_or_refused(folder, content):
    (folder / "dataset.json").write_text(json.dumps(content))
    only_sentences(describe_path, folder)
    only_sentences(Dataset.images_only, folder)


@each
@given(content=spoilt([{"train": ["a"], "val": ["b"]}]))
def test_any_split_is_read_or_refused(tmp_path, content):
    (tmp_path / "split.json").write_text(json.dumps(content))
    only_sentences(read_split, tmp_path / "split.json")


@each
@given(content=spoilt({"names": {"1": "liver"}, "num_targets": 1}))
def test_any_names_of_label_maps_are_read_or_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    only_sentences(read_names, tmp_path)
    (tmp_path / TABLE).write_text(json.dumps(content))
    only_sentences(read_table, Store(tmp_path, IngestSettings()))


def test_a_damaged_table_of_labels_is_one_sentence(tmp_path):
    (tmp_path / TABLE).write_bytes(b"\x00")
    store = Store(tmp_path, IngestSettings())
    assert only_sentences(read_table, store).startswith(f"{tmp_path / TABLE} is damaged; delete")
