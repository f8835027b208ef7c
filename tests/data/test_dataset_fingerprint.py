"""Each image of a dataset is read once, whoever asks for it, and not at all where a folder knows it."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.data import dataset_fingerprint
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import FILE, DatasetFingerprint
from misfm.data.fingerprint import fingerprint
from misfm.data.ingest import ingest_dataset
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings

SETTINGS = IngestSettings(spacing=(14.0, 14.0, 14.0))


@pytest.fixture
def folder(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "dataset")


@pytest.fixture
def reads(monkeypatch):
    """Paths of the images that were read, in order."""
    paths = []

    def counted(path):
        paths.append(path)
        return read_volume(path)

    monkeypatch.setattr(dataset_fingerprint, "read_volume", counted)
    return paths


def test_plan_leaks_and_ingest_read_an_image_once(folder, reads, tmp_path):
    images = DatasetFingerprint(Dataset.open(folder))
    cases = images.dataset.cases()
    images.keep(cases)
    assert min(images.shape(images.spacing)) > 0
    images.add(cases)
    scans = [images.scans(case) for case in cases]
    ingest_dataset(images.dataset, cases, tmp_path / "store", SETTINGS, images=images)
    assert sorted(reads) == sorted(case.image_paths[0] for case in cases)
    assert scans == [[fingerprint(read_volume(case.image_paths[0]))[:16]] for case in cases]


def test_the_store_is_the_same_however_its_images_were_read(folder, tmp_path):
    images = DatasetFingerprint(Dataset.open(folder))
    cases = images.dataset.cases()
    images.keep(cases)
    images.add(cases)
    kept = ingest_dataset(images.dataset, cases, tmp_path / "kept", SETTINGS, images=images)
    plain = ingest_dataset(images.dataset, cases, tmp_path / "plain", SETTINGS)
    assert kept.records() == plain.records()


def test_voxels_beyond_the_bound_are_read_again(folder, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_fingerprint, "KEPT_BYTES", 24 * 26 * 28 * 2)  # those of one image
    images = DatasetFingerprint(Dataset.open(folder))
    cases = images.dataset.cases()
    images.keep(cases)
    images.add(cases)
    ingest_dataset(images.dataset, cases, tmp_path / "store", SETTINGS, images=images)
    assert len(reads) == 2 * len(cases) - 1


def test_what_a_folder_knows_is_read_again_only_when_it_has_changed(folder, reads, tmp_path):
    first = DatasetFingerprint(Dataset.open(folder))
    cases = first.dataset.cases()
    first.add(cases)
    first.save(tmp_path)
    del reads[:]
    again = DatasetFingerprint.open(first.dataset, tmp_path)
    again.add(cases)
    assert again.images == first.images
    assert reads == []
    cases[0].image_paths[0].touch()
    again.add(cases)
    assert reads == [cases[0].image_paths[0]]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"stamp": "1"}}'])
def test_a_file_that_cannot_be_used_is_passed_over(folder, tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert DatasetFingerprint.open(Dataset.open(folder), tmp_path).images == {}


def test_fingerprints_of_an_earlier_kind_are_taken_anew(folder, tmp_path):
    images = DatasetFingerprint(Dataset.open(folder))
    images.add(images.dataset.cases())
    images.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(
        json.dumps({path: {**one, "scan": "0" * 64} for path, one in content.items()})
    )
    assert DatasetFingerprint.open(images.dataset, tmp_path).images == {}


def test_an_empty_image_is_no_scan(folder):
    images = DatasetFingerprint(Dataset.open(folder))
    case = images.dataset.cases()[0]
    nib.save(nib.Nifti1Image(np.zeros((24, 26, 28), np.int16), np.eye(4)), case.image_paths[0])
    images.add([case])
    assert images.scans(case) == []
