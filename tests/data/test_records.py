"""Records as columns: what a list of records says, without a list of records, and never of another state."""

import pickle

import numpy as np
import pytest

from misfm.data import index as index_module
from misfm.data.columns import read_columns
from misfm.data.index import COLUMNS, Index
from misfm.data.record import IngestSettings, Origin, make_entry
from misfm.data.records import Records, fingerprint_of
from misfm.errors import DataError
from misfm.volume import Volume
from tests.data.test_index import RULE, add, entry


def two_channels(seed):
    generator = np.random.default_rng(seed)
    image = Volume(generator.normal(size=(2, 4, 5, 7)).astype(np.float32), np.eye(4))
    names, scans = ("T1", "T2"), (f"t1 {seed}", f"t2 {seed}")
    origin = Origin(f"case{seed}", f"/scans/ä{seed}.nii.gz", f"voxels {seed}", names, scans)
    return make_entry(origin, image, None, ["mr", "pet"], (RULE, RULE), IngestSettings())


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "MANY", 3)
    index = Index(tmp_path / "index.sqlite")
    index.create()
    for seed in range(3):
        add(index, entry(seed))
    add(index, two_channels(3))
    return index


def fresh(index):
    """The index as another process finds it."""
    return Index(index.path)


def test_columns_say_what_records_do(index):
    listed = index.records()
    assert index.path.with_name(COLUMNS).exists()
    for records in (
        listed,
        fresh(index).records(),
        Records.of(list(listed)),
        pickle.loads(pickle.dumps(listed)),
    ):
        plain = [records[place] for place in range(len(records))]
        assert plain == list(listed) == records
        assert records.ids == [record.id for record in plain]
        assert records.cases == [record.case for record in plain]
        assert records.sources == [record.source for record in plain]
        assert records.fingerprints == [record.fingerprint for record in plain]
        assert records.scans == {"voxels 0", "voxels 1", "voxels 2", "t1 3", "t2 3"}
        assert records.shapes.tolist() == [list(record.shape) for record in plain]
        assert records.anonymised.tolist() == [False] * 4
        assert records.least_labels.tolist() == [0, 0, 0, -1]
        looks, places = records.looks
        assert [looks[place].kinds for place in places] == [record.channel_kinds for record in plain]
        assert [looks[place].names for place in places] == [record.channel_names for record in plain]
    assert records[1:][0] == records[-3]
    assert len(records[:0]) == len(records.take([])) == 0
    assert records.take(records.least_labels < 0) == [records[3]]
    assert fingerprint_of(records) == fingerprint_of(list(records)[::-1])


def test_stores_are_joined_in_their_order(index):
    first = index.records()
    rest = Records.of([entry(7).record, two_channels(8).record, two_channels(9).record])
    joined = Records.joined([first.take([3, 0]), rest[1:]])
    assert joined == [first[3], first[0], rest[1], rest[2]]
    assert joined.stores.tolist() == [0, 0, 1, 1]
    assert joined.ids == [record.id for record in joined]
    assert len(joined.looks[0]) == 2
    assert joined.take([2, 1]) == [rest[1], first[0]]
    assert rest[:1] + first[:1] == [rest[0], first[0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: add(index, entry(4)),
        lambda index: index.quarantine("/scans/1.nii.gz", "damaged", None),
        lambda index: index.seal(list(index.records())),
    ],
)
def test_columns_of_another_state_are_never_read(index, change):
    before = index.records()
    kept = index.path.with_name(COLUMNS).read_bytes()
    change(index)
    after = fresh(index).records()
    index.path.with_name(COLUMNS).write_bytes(kept)
    assert index.records() == after == fresh(index).records()
    assert (before == after) is (len(before) == len(after))


def test_no_flipped_bit_of_the_columns_changes_what_is_read(index):
    right = list(index.records())
    file = index.path.with_name(COLUMNS)
    content, refused = file.read_bytes(), list[str]()
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 300):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            assert fresh(index).records() == right
        except DataError as error:
            refused.append(str(error))
    assert 10 < len(refused) < 250
    assert all(f"{file} is damaged (the row of " in sentence for sentence in refused)
    for cut in (b"", content[:20], content[:-1]):
        file.write_bytes(cut)
        assert fresh(index).records() == right
    file.unlink()
    assert read_columns(file, (0, 0, 0)) is None
