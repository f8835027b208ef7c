"""The store: patches equal slices of the volume, and nothing half-written ever belongs to it."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfm.data.fingerprint import fingerprint
from misfm.data.intensity import Normalisation
from misfm.data.record import IngestSettings, Origin, anonymise, make_entry
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from misfm.volume import Box, Volume

SETTINGS = IngestSettings(spacing=(2, 2, 2))
RULE = Normalisation(lower=-1000, upper=1000, shift=0, scale=1000)
AFFINE = np.array([[0, 0, -2.0, 3], [0, -2, 0, 4], [2, 0, 0, 5], [0, 0, 0, 1]])


def entry(seed=0, shape=(1, 20, 70, 40), case="case", labelled=True, dtype=np.int16):
    generator = np.random.default_rng(seed)
    image = Volume(generator.integers(-1000, 1000, shape).astype(dtype), AFFINE)
    label = Volume(generator.integers(0, 3, (1, *shape[1:])).astype(np.uint8), AFFINE) if labelled else None
    origin = Origin(case, f"/scans/{case}.nii.gz", fingerprint(image))
    return image, label, make_entry(origin, image, label, "ct", (RULE,) * shape[0], SETTINGS)


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
    record = store.add(make_entry(origin, image, None, "mr", (RULE, RULE), SETTINGS))
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
    assert len(list((store.path / "volumes").iterdir())) == 2


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
        patch.setattr(Store, "_remember", killed)
        with pytest.raises(KeyboardInterrupt):
            store.add(one)
    assert Store.open(store.path).records() == []
    record = store.add(one)
    assert Store.open(store.path).records() == [record]
    assert sorted(path.name for path in (store.path / "volumes").iterdir()) == [
        f"{record.id}.b2nd",
        f"{record.id}.label.b2nd",
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


def test_a_damaged_volume_is_named(tmp_path):
    store = Store.create(tmp_path / "s", SETTINGS)
    record = store.add(entry(shape=(1, 4, 5, 6))[2])
    file = store.path / "volumes" / f"{record.id}.b2nd"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=record.id):
        store.read(record)
    file.unlink()
    with pytest.raises(DataError, match=record.id):
        store.read(record)
