"""The store: patches equal slices of the volume, and nothing half-written ever belongs to it."""

import json
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfm.data.checksums import checksum_of_json
from misfm.data.fingerprint import fingerprint
from misfm.data.index import Index
from misfm.data.intensity import Normalisation
from misfm.data.record import IngestSettings, Origin, anonymise, make_entry
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.files import write_json
from misfm.volume import Box, Volume

SETTINGS = IngestSettings(spacing=(2, 2, 2))
RULE = Normalisation(lower=-1000, upper=1000, shift=0, scale=1000)
AFFINE = np.array([[0, 0, -2.0, 3], [0, -2, 0, 4], [2, 0, 0, 5], [0, 0, 0, 1]])


def entry(seed=0, shape=(1, 20, 70, 40), case="case", labelled=True, dtype=np.int16):
    generator = np.random.default_rng(seed)
    image = Volume(generator.integers(-1000, 1000, shape).astype(dtype), AFFINE)
    label = Volume(generator.integers(0, 3, (1, *shape[1:])).astype(np.uint8), AFFINE) if labelled else None
    origin = Origin(case, f"/scans/{case}.nii.gz", fingerprint(image))
    return image, label, make_entry(origin, image, label, ["ct"] * shape[0], (RULE,) * shape[0], SETTINGS)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = Store.create(tmp_path_factory.mktemp("store") / "s", SETTINGS)
    image, label, one = entry()
    return store, store.add(one), image, label


def test_what_goes_in_comes_out(filled):
    store, record, image, label = filled
    again = Store.open(store.path)
    assert again.settings == SETTINGS
    assert again.records() == [record]
    assert again.read(record).data.dtype == np.int16
    assert np.array_equal(again.read(record).data, image.data)
    assert np.array_equal(again.read_label(record).data, label.data)
    assert np.array_equal(record.affine, AFFINE)
    assert record.shape == (20, 70, 40)
    assert record.spacing == (2, 2, 2)
    assert record.labels == (0, 1, 2)
    assert record.normalisation == (RULE,)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(-30, 30), st.integers(-30, 80), st.integers(-30, 50)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
)
def test_a_patch_is_a_slice_of_the_padded_volume(filled, start, size):
    store, record, image, label = filled
    margin = 60
    lowest = image.data.min()
    padded = np.pad(image.data[0], margin, constant_values=lowest)
    region = tuple(slice(a + margin, a + margin + n) for a, n in zip(start, size, strict=True))
    patch, valid = store.read_patch(record, Box(start, size))
    assert np.array_equal(patch[0], padded[region])
    real = np.pad(np.ones(image.shape, bool), margin)[region]
    marked = np.zeros(size, bool)
    marked[valid.slices] = True
    assert np.array_equal(marked, real)
    labels, _ = store.read_label_patch(record, Box(start, size))
    assert np.array_equal(labels[0], np.pad(label.data[0], margin)[region])


def test_channels_are_padded_each_with_its_own_lowest_value(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    image, _, _ = entry(shape=(2, 5, 6, 7), dtype=np.float32)
    image.data[1] += 5000
    origin = Origin("two", "two", fingerprint(image))
    record = store.add(make_entry(origin, image, None, ["mr", "mr"], (RULE, RULE), SETTINGS))
    patch, _ = store.read_patch(record, Box((-1, 0, 0), (2, 6, 7)))
    assert (patch[0, 0] == image.data[0].min()).all()
    assert (patch[1, 0] == image.data[1].min()).all()
    assert np.array_equal(patch[:, 1], image.data[:, 0])
    with pytest.raises(DataError, match="no label map"):
        store.read_label_patch(record, Box((0, 0, 0), (1, 1, 1)))


def test_anchors_are_content_and_label_anchors_their_label(filled):
    store, record, image, label = filled
    anchors = store.anchors(record)
    assert anchors.shape == (4096, 3)
    assert (image.data[0][tuple(anchors.T)] > -600).all()
    assert len(np.unique(anchors, axis=0)) == 4096
    by_label = store.label_anchors(record)
    assert sorted(by_label) == [1, 2]
    for value, places in by_label.items():
        assert len(places) == 1024
        assert (label.data[0][tuple(places.T)] == value).all()


def test_a_mask_of_what_was_removed_is_read_by_box_and_holds_no_anchor(tmp_path, filled):
    image, _, plain = entry(labelled=False)
    removed = np.zeros((1, *image.shape), np.uint8)
    removed[:, 3:9, :, 20:] = 1
    store = Store.create(tmp_path / "s", SETTINGS)
    record = store.add(anonymise(plain, Volume(removed, AFFINE)))
    assert record.anonymised
    assert record.id != plain.record.id
    patch = store.read_anonymised_patch(record, Box((-2, 60, 15), (10, 20, 10)))
    padded = np.pad(removed[0], ((2, 0), (0, 10), (0, 0))).astype(bool)
    assert np.array_equal(patch, padded[:10, 60:80, 15:25])
    anchors = store.anchors(record)
    assert 3000 < len(anchors) < 4096
    assert not removed[0][tuple(anchors.T)].any()
    store.quarantine(record.source, "changed")
    assert volume_files(store) == []

    whole, unmasked, *_ = filled
    assert not whole.read_anonymised_patch(unmasked, Box((0, 0, 0), (3, 4, 5))).any()
    assert not list((whole.path / "volumes").glob("*.anon*"))
    assert anonymise(plain, Volume(np.zeros_like(removed), AFFINE)) is plain
    with pytest.raises(DataError, match=r"mask of /scans/case\.nii\.gz covers the whole patient"):
        anonymise(plain, Volume(np.ones_like(removed), AFFINE))


def test_threads_read_at_once(filled):
    store, record, image, _ = filled
    with ThreadPoolExecutor(4) as pool:
        boxes = [Box((d, 10, 5), (3, 20, 20)) for d in range(15)] * 4
        for box, (patch, _) in zip(
            boxes, pool.map(lambda b: store.read_patch(record, b), boxes), strict=True
        ):
            assert np.array_equal(patch, image.crop(box).data)


def test_equal_content_is_equal_whatever_the_order(tmp_path):
    entries = [entry(seed, (1, 4, 5, 6), f"case{seed}")[2] for seed in range(4)]
    stores = [Store.create(tmp_path / name, SETTINGS) for name in "ab"]
    for store, order in zip(stores, (entries, entries[::-1]), strict=True):
        for one in order:
            store.add(one)
    assert stores[0].records() == stores[1].records()
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert [record.case for record in stores[0].records()] == ["case0", "case1", "case2", "case3"]


def test_a_changed_source_replaces_its_volume(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    store.add(entry(0, (1, 4, 5, 6))[2], "monday")
    store.add_duplicate("/copy", "monday", store.records()[0])
    record = store.add(entry(1, (1, 4, 5, 6))[2], "tuesday")
    assert store.records() == [record]
    assert store.is_known(record.source, "tuesday")
    assert not store.is_known(record.source, "monday")
    assert not store.is_known("/copy", "monday")
    assert len(list((store.path / "volumes").iterdir())) == 3


def volume_files(store):
    return sorted(path.name for path in (store.path / "volumes").iterdir())


def test_a_source_that_became_unusable_loses_its_volume(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    other = store.add(entry(1, (1, 4, 5, 6), "other")[2])
    before = volume_files(store)
    record = store.add(entry(0, (1, 4, 5, 6))[2], "monday")
    store.quarantine(record.source, "damaged")
    assert store.records() == [other]
    assert volume_files(store) == before
    assert not store.is_known(record.source, "monday")


def test_a_source_that_became_a_duplicate_loses_its_volume_and_one_that_was_keeps_the_original(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    other = store.add(entry(1, (1, 4, 5, 6), "other")[2])
    before = volume_files(store)
    record = store.add(entry(0, (1, 4, 5, 6))[2], "monday")
    store.add_duplicate(record.source, "tuesday", other)
    assert store.records() == [other]
    assert volume_files(store) == before
    assert store.is_known(record.source, "tuesday")
    store.quarantine(record.source, "damaged")
    assert store.records() == [other]
    assert not store.is_known(record.source, "tuesday")


def test_killed_between_file_and_row_leaves_no_entry_and_adding_again_works(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "s", SETTINGS)
    one = entry(shape=(1, 4, 5, 6))[2]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_remember", killed)
        with pytest.raises(KeyboardInterrupt):
            store.add(one)
    assert Store.open(store.path).records() == []
    record = store.add(one)
    assert Store.open(store.path).records() == [record]
    assert sorted(path.name for path in (store.path / "volumes").iterdir()) == [
        f"{record.id}.b2nd",
        f"{record.id}.label.b2nd",
        f"{record.id}.places",
    ]


def test_disk_full_is_one_sentence_and_no_entry(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "s", SETTINGS)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        store.add(entry(shape=(1, 4, 5, 6))[2])
    assert store.records() == []
    assert list((store.path / "volumes").iterdir()) == []


def test_quarantine_is_kept_until_the_source_works(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    one = entry(shape=(1, 4, 5, 6))[2]
    store.quarantine("b", "damaged")
    store.quarantine(one.record.source, "truncated")
    assert store.quarantined() == [(one.record.source, "truncated"), ("b", "damaged")]
    store.add(one)
    assert store.quarantined() == [("b", "damaged")]


def test_settings_of_a_store_are_fixed(tmp_path):
    Store.create(tmp_path / "s", SETTINGS)
    assert Store.create(tmp_path / "s", SETTINGS).records() == []
    with pytest.raises(ConfigError, match="spacing 2,2,2 and intensity auto, not spacing native"):
        Store.create(tmp_path / "s", IngestSettings())


def test_what_is_no_store(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} is not a store.*misfm ingest"):
        Store.open(tmp_path)
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(DataError, match="is not a store"):
        Store.open(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be made"):
        Store.create(tmp_path / "file" / "store", SETTINGS)


PARTS = ["", ".label", ".anon"]


@pytest.fixture
def three_parts(tmp_path):
    """A store with a volume that has an image, a label map and a mask, and with another one."""
    store = Store.create(tmp_path / "s", SETTINGS)
    image, _, one = entry(shape=(1, 12, 15, 16))
    removed = np.zeros((1, *image.shape), np.uint8)
    removed[:, :3] = 1
    store.add(anonymise(one, Volume(removed, AFFINE)), "monday")
    store.add(entry(1, (1, 12, 15, 16), "other")[2], "monday")
    return store


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def read_all(store):
    for record in store.records():
        box = Box((1, 2, 3), (4, 4, 4))
        store.read(record)
        store.read_label_patch(record, box)
        store.read_anonymised_patch(record, box)


@pytest.mark.parametrize("part", PARTS)
def test_no_flipped_bit_of_a_file_is_read(three_parts, part):
    read_all(three_parts)
    record = three_parts.records()[0]
    file = three_parts.path / "volumes" / f"{record.id}{part}.b2nd"
    whole = file.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40):
        flip(file, int(bit))
        with pytest.raises(
            DataError, match=rf"{file.name} is damaged.*run again.*from /scans/case\.nii\.gz\.$"
        ):
            read_all(three_parts)
        assert not three_parts.has(record.source, "monday")
        assert len(three_parts.faults()) == 1
        file.write_bytes(whole)
    read_all(three_parts)
    assert three_parts.has(record.source, "monday")
    assert three_parts.faults() == []


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_cut_or_missing_is_named(three_parts, part):
    record = three_parts.records()[0]
    file = three_parts.path / "volumes" / f"{record.id}{part}.b2nd"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{file.name} is damaged: it has"):
        read_all(three_parts)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name} is missing"):
        read_all(three_parts)
    assert [file.name in fault for fault in three_parts.faults()] == [True]


def test_two_volumes_that_changed_places_are_noticed(three_parts):
    one, other = (three_parts.path / "volumes" / f"{r.id}.b2nd" for r in three_parts.records())
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert len(three_parts.faults()) == 2
    for record in three_parts.records():
        with pytest.raises(DataError, match="is damaged"):
            three_parts.read(record)


def test_settings_that_changed_are_noticed(three_parts):
    file = three_parts.path / "store.json"
    text = file.read_text()
    for old, new in (
        ("2.0", "3.0"),
        ('"auto"', '"auuo"'),
        ('"spacing"', '"spacinf"'),
        ('"checksum"', '"checksul"'),
    ):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(
            DataError, match=r"store\.json is damaged; delete the store and run again what made"
        ):
            Store.open(three_parts.path)
    for broken in (text[:-10], "[]", "[" * 100_000):
        file.write_text(broken)
        with pytest.raises(DataError, match=r"store\.json is damaged"):
            Store.open(three_parts.path)
    file.write_text(text.replace('"format_version": 3', '"format_version": 4'))
    with pytest.raises(DataError, match="has format 4, not 3"):
        Store.open(three_parts.path)


def as_format_2(store):
    """Bring the places of a store into its index, where they were before format 3."""
    with store._index._transaction(write=True) as database:
        for record in store.records():
            places = [store._files.places(record, kind) for kind in ("anchors", "label_anchors")]
            row = (*(each.tobytes() for each in places), record.id)
            database.execute("UPDATE volumes SET anchors = ?, label_anchors = ? WHERE id = ?", row)
            store._files.places_path(record.id).unlink()
        database.execute("PRAGMA user_version = 0")
    content = {"format_version": 2, "settings": store.settings.model_dump(mode="json"), "pseudonymous": False}
    write_json(store.path / "store.json", {**content, "checksum": checksum_of_json(content)})
    return Store.open(store.path)


def as_format_1(store):
    """Take from a store what the first format had not."""
    store = as_format_2(store)
    database = sqlite3.connect(store.path / "index.sqlite")
    with database:
        for record in store.records():
            text = record.model_dump_json(exclude={"checks"})
            database.execute("UPDATE volumes SET record = ? WHERE id = ?", (text, record.id))
        database.execute("ALTER TABLE volumes DROP COLUMN row_check")
        database.execute("DROP TABLE tally")
    database.close()
    settings = store.settings.model_dump(mode="json")
    (store.path / "store.json").write_text(json.dumps({"format_version": 1, "settings": settings}))
    return Store.open(store.path)


def test_a_store_of_format_2_is_read_and_becomes_one_of_format_3(three_parts):
    records = list(three_parts.records())
    anchors = [three_parts.anchors(record) for record in records]
    old = as_format_2(three_parts)
    assert old.records() == records
    for store in (old, Store.create(old.path, SETTINGS)):
        assert all(np.array_equal(store.anchors(r), found) for r, found in zip(records, anchors, strict=True))
        assert sorted(store.label_anchors(records[0])) == [1, 2]
        assert store.faults() == []
    assert '"format_version": 3' in (old.path / "store.json").read_text()
    file = old.path / "volumes" / f"{records[0].id}.b2nd"
    file.unlink()
    with Store.writing(old.path, SETTINGS) as store:
        assert not store.has(records[0].source, "monday")
        _, _, one = entry(shape=(1, 12, 15, 16))
        store.add(one, "tuesday")
    beside = [store._files.places(record, "anchors") is not None for record in store.records()]
    assert beside == [True, False]  # what was made again


@pytest.mark.parametrize("spoil", [lambda c: c[:-1], lambda c: b"", lambda c: c[:20] + b"x" + c[21:], None])
def test_damaged_places_are_refused_and_made_again(three_parts, spoil):
    record = three_parts.records()[0]
    file = three_parts.path / "volumes" / f"{record.id}.places"
    if spoil is None:
        file.unlink()
    else:
        file.write_bytes(spoil(file.read_bytes()))
    for read in (three_parts.anchors, three_parts.label_anchors):
        with pytest.raises(DataError, match=rf"{file.name} is (damaged|missing).*run again.*from /scans"):
            read(record)
    assert len(three_parts.faults()) == 1
    assert not three_parts.has(record.source, "monday")


def test_a_store_without_checksums_is_read_and_gets_them_from_the_next_that_adds(three_parts):
    records = three_parts.records()
    old = as_format_1(three_parts)
    assert [record.id for record in old.records()] == [record.id for record in records]
    assert not old.is_checked
    assert old.faults() == []
    read_all(old)
    file = old.path / "volumes" / f"{records[1].id}.label.b2nd"
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_all(old)
    with Store.writing(old.path, SETTINGS) as store:
        assert store.is_checked
        assert store.records()[0] == records[0]
        assert store.has(records[0].source, "monday")
        assert not store.has(records[1].source, "monday")
        store.add(entry(1, (1, 12, 15, 16), "other")[2], "monday")
    assert Store.open(old.path).records() == records
    assert store.faults() == []


def test_a_volume_that_is_not_what_its_record_says_is_refused_even_without_checksums(three_parts):
    old = as_format_1(three_parts)
    record, other = old.records()
    file = old.path / "volumes" / f"{record.id}.b2nd"
    file.write_bytes(entry(2, (1, 12, 15, 17))[2].image)
    with pytest.raises(DataError, match=r"it holds int16 \(1, 12, 15, 17\)"):
        old.read(record)
    file.write_bytes(entry(2, (2, 12, 15, 16))[2].image)
    with pytest.raises(DataError, match=r"it holds int16 \(2, 12, 15, 16\)"):
        old.read(record)
    file.write_bytes(entry(2, (1, 12, 15, 16))[2].label)
    with pytest.raises(DataError, match="it holds uint8"):
        old.read(record)
    old.read(other)


def test_one_process_adds_at_a_time_and_leftovers_of_killed_ones_go(tmp_path, caplog):
    caplog.set_level("INFO", "misfm")
    with Store.writing(tmp_path / "s", SETTINGS) as store:
        store.add(entry(shape=(1, 4, 5, 6))[2])
    leftover = store.path / "volumes" / ".0123.b2nd.0123abcd.tmp"
    leftover.write_bytes(b"half")

    def add_another():
        with Store.writing(store.path, SETTINGS) as second:
            return second.add(entry(1, (1, 4, 5, 6), "other")[2])

    with ThreadPoolExecutor(1) as pool:
        with Store.writing(store.path, SETTINGS) as first:
            assert not leftover.exists()
            later = pool.submit(add_another)
            while "waiting until it is done" not in caplog.text:
                time.sleep(0.01)
                assert not later.done()
            assert len(Store.open(store.path).records()) == 1  # readers never wait
            first.add(entry(2, (1, 4, 5, 6), "third")[2])
        assert later.result() in store.records()
    assert len(store.records()) == 3
    assert caplog.text.count("waiting until it is done") == 1
    assert len(volume_files(store)) == 9
