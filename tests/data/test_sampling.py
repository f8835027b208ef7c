"""Which volumes are drawn how often: shares are those that were asked for, and draws those of the seed."""

from collections import Counter

import pytest

from misfm.data.records import Records
from misfm.data.sampling import SamplingSettings, choice_of, groups_of
from misfm.errors import ConfigError
from misfm.seeding import draw_different, generator_for
from tests.data.test_index import entry
from tests.data.test_records import two_channels


def records_of(*sources):
    return Records.of(
        entry(seed).record.model_copy(update={"source": source}) for seed, source in enumerate(sources)
    )


RECORDS = records_of(
    "/d/a/s1/x.nii", "/d/a/s2/x.nii", "/d/a/s3/x.nii", "/d/b/s1/x.nii", "/d/c/x.nii", "/d/a/s4/x.nii"
)


def counts(settings, records=RECORDS, stores=("one", "two"), batches=4000, size=1):
    choose = choice_of(settings, records, stores)
    drawn = [choose(len(records), size, generator_for(0, "patches", step)) for step in range(batches)]
    assert drawn[7] == choose(len(records), size, generator_for(0, "patches", 7))
    groups = groups_of(settings, records, stores)
    return Counter(groups[place] for batch in drawn for place in batch), drawn


def test_groups_are_drawn_by_their_weights_and_volumes_within_alike():
    found, drawn = counts(SamplingSettings(weights={"a": 1, "b": 2, "*": 1}))
    assert found["b"] == pytest.approx(2000, abs=120)
    assert found["a"] == pytest.approx(1000, abs=100)
    each = Counter(place for batch in drawn for place in batch)
    assert all(each[place] == pytest.approx(250, abs=60) for place in (0, 1, 2, 5))
    left_out, _ = counts(SamplingSettings(weights={"a": 1, "b": 0, "c": 1}), batches=500)
    assert set(left_out) == {"a", "c"}


def test_a_temperature_moves_from_all_volumes_alike_to_all_groups_alike():
    alike, _ = counts(SamplingSettings(temperature=1))
    assert alike["a"] == pytest.approx(4000 * 4 / 6, abs=130)
    groups, _ = counts(SamplingSettings(temperature=1e6))
    assert groups["a"] == pytest.approx(4000 / 3, abs=130)
    between, _ = counts(SamplingSettings(temperature=2))
    assert between["a"] == pytest.approx(2000, abs=130)


def test_volumes_of_a_batch_differ_as_long_as_there_are_others():
    _, drawn = counts(SamplingSettings(weights={"a": 1, "*": 1}), batches=200, size=5)
    assert all(len(set(batch)) == 5 for batch in drawn)
    _, drawn = counts(SamplingSettings(weights={"b": 1, "*": 0}), batches=8, size=4)
    assert drawn == [[3] * 4] * 8


def test_groups_are_stores_modalities_data_sets_or_patterns():
    joined = Records.joined([RECORDS[:2], records_of("/e/x/1.nii"), Records.of([two_channels(1).record])])
    stores = ("ours", "theirs", "more")
    assert groups_of(SamplingSettings(by="store"), joined, stores) == ["ours", "ours", "theirs", "more"]
    assert groups_of(SamplingSettings(by="modality"), joined, stores) == ["ct", "ct", "ct", "mr+pet"]
    assert groups_of(SamplingSettings(), joined, stores) == ["s1", "s2", "x", "scans"]
    by_path = SamplingSettings(by="path", weights={"*/s1/*": 1, "*/a/*": 2, "*": 3})
    assert groups_of(by_path, RECORDS, stores) == ["*/s1/*", "*/a/*", "*/a/*", "*/s1/*", "*", "*/a/*"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"either weights of groups or a temperature; groups are: a \(4\), b \(1\), c \(1\)"),
        ({"weights": {"a": 1}, "temperature": 2}, "either weights"),
        ({"weights": {"a": 1, "d": 1}}, "names 'd', and no volume is of that dataset: a"),
        ({"weights": {"a": 1, "b": 1}}, "has none for 'c'"),
        ({"weights": {"*": 0}}, "leaves out every dataset"),
        ({"by": "modality", "weights": {"ct": 1}}, r"finds only one modality, ct \(6\)"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        choice_of(SamplingSettings(**settings), RECORDS, ("one",))


def test_without_settings_all_are_drawn_alike():
    assert choice_of(None, RECORDS, ("one",)) is draw_different
