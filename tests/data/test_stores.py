"""Several stores read as one, and stores at addresses: what is read is what each store holds."""

import functools
import pickle
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from misfm.data.patches import UnlabelledPatches
from misfm.data.record import IngestSettings
from misfm.data.remote import RemoteFolder, copies_of
from misfm.data.store import Store
from misfm.data.stores import open_stores
from misfm.errors import ConfigError, DataError
from misfm.volume import Box
from tests.data.test_store import SETTINGS, entry, flip

SHAPE = (1, 12, 15, 16)


def make(path, *seeds, settings=SETTINGS):
    store = Store.create(path, settings)
    for seed in seeds:
        store.add(entry(seed, SHAPE, f"case{seed}")[2], "monday")
    return store


@pytest.fixture
def two(tmp_path):
    return make(tmp_path / "one", 0, 1), make(tmp_path / "other", 1, 2)


def test_several_stores_are_read_as_one(tmp_path, two):
    one, other = two
    joined = open_stores([str(one.path), str(other.path)], tmp_path / "copies")
    assert joined.records() == [*one.records(), other.records()[1]]
    assert joined.records().stores.tolist() == [0, 0, 1]
    assert joined.names == ("one", "other")
    box = Box((1, 2, 3), (4, 4, 4))
    for again in (joined, pickle.loads(pickle.dumps(joined))):
        for record, store in zip(again.records(), (one, one, other), strict=True):
            assert np.array_equal(again.read_patch(record, box)[0], store.read_patch(record, box)[0])
            assert np.array_equal(
                again.read_label_patch(record, box)[0], store.read_label_patch(record, box)[0]
            )
            assert np.array_equal(again.anchors(record), store.anchors(record))
            assert sorted(again.label_anchors(record)) == [1, 2]
            assert not again.read_anonymised_patch(record, box).any()
    assert joined.fingerprint() == make(tmp_path / "all", 2, 1, 0).fingerprint()
    assert not (tmp_path / "copies").exists()


def test_stores_that_were_made_differently_do_not_go_together(tmp_path):
    make(tmp_path / "one", 0)
    make(tmp_path / "other", 1, settings=IngestSettings(spacing=(3, 3, 3)))
    with pytest.raises(ConfigError, match=r"cannot be pretrained on together.*2,2,2.*3,3,3"):
        open_stores([str(tmp_path / "one"), str(tmp_path / "other")], tmp_path)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and counts what was asked for."""

    tags = True
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path.rpartition("/")[2])
        super().do_GET()

    def end_headers(self):
        if self.tags and Path(self.translate_path(self.path)).is_file():
            state = Path(self.translate_path(self.path)).stat()
            self.send_header("ETag", f'"{state.st_mtime_ns} {state.st_size}"')
        super().end_headers()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def served(tmp_path):
    """Address of ``tmp_path``."""
    Quiet.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_at_an_address_is_read_once_and_as_it_is(tmp_path, two, served):
    one, _ = two
    url, copies = f"{served}/one/", tmp_path / "copies"
    store = open_stores([url], copies)
    assert store.records() == one.records()
    assert store.names == ("one",)
    assert not [name for name in Quiet.asked if name.endswith(".b2nd")]

    def batches(of):
        return UnlabelledPatches(of, of.records(), (8, 8, 8), num_patches=2, batch_size=2, seed=3)

    for again in (store, open_stores([url], copies), pickle.loads(pickle.dumps(store))):
        for step in range(3):
            assert np.array_equal(batches(again)[step].patches, batches(one)[step].patches)
    for name in ("index.sqlite", f"{one.records()[0].id}.b2nd", f"{one.records()[0].id}.places"):
        assert Quiet.asked.count(name) == 1


@pytest.mark.parametrize("tags", [True, False])
def test_copies_that_are_damaged_or_outdated_are_copied_again(tmp_path, two, served, monkeypatch, tags):
    monkeypatch.setattr(Quiet, "tags", tags)
    one, _ = two
    url, copies = f"{served}/one", tmp_path / "copies"
    store = open_stores([url], copies)
    record = one.records()[0]
    right, places = store.read(record).data, store.anchors(record)
    for name in (f"{record.id}.b2nd", f"{record.id}.places"):
        flip(copies_of(url, copies) / "volumes" / name, 4321)
    assert np.array_equal(store.read(record).data, right)
    assert np.array_equal(store.anchors(record), places)
    one.add(entry(7, SHAPE, "case7")[2])
    assert len(open_stores([url], copies).records()) == 3
    file = f"{record.id}.b2nd"
    flip(one.path / "volumes" / file, 4321)
    shutil.rmtree(copies)
    with pytest.raises(DataError, match=f"{file} is damaged"):
        open_stores([url], copies).read(record)


def test_what_is_no_address_of_a_store_is_one_sentence(tmp_path, served):
    with pytest.raises(DataError, match=r"is not a store: it has no store\.json"):
        open_stores([f"{served}/nothing"], tmp_path)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/s.* cannot be read"):
        open_stores(["http://127.0.0.1:9/s"], tmp_path)
    with pytest.raises(ConfigError, match="bogus"):
        RemoteFolder("bogus://s", tmp_path).fetch("x")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"s3:// needs another package \(Install s3fs"):
        open_stores(["s3://bucket/store"], tmp_path)
