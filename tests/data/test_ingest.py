"""Ingest: once is enough, killed is no harm, bad scans stand aside, labels stay where they belong."""

import gzip
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from misfm.data import forecast
from misfm.data.dataset import Dataset
from misfm.data.index import Index
from misfm.data.ingest import ingest, ingest_dataset, prepare_scan
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings
from misfm.data.scan import find_scans
from misfm.data.store import Store
from misfm.data.volume_files import VolumeFiles
from misfm.errors import ConfigError, DataError
from misfm.volume import Box, Volume

NATIVE = IngestSettings()
SPL = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, voxels, affine=SPL):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def ct(seed=0, shape=(30, 32, 34)):
    """A noisy body in air, as a NIfTI stores it: axes (x, y, z)."""
    generator = np.random.default_rng(seed)
    voxels = generator.integers(-1010, -990, shape).astype(np.int16)
    voxels[6:-6, 5:-5, 4:-4] = generator.integers(-100, 200, (shape[0] - 12, shape[1] - 10, shape[2] - 8))
    return voxels


@pytest.fixture
def scans(tmp_path):
    for seed in range(3):
        save(tmp_path / "scans" / f"case{seed}.nii.gz", ct(seed))
    return tmp_path / "scans"


def test_a_background_above_the_lowest_value_makes_no_label_map(tmp_path):
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in (30, 32, 34)), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(0, 1, distance.shape)
    skull_stripped = np.where(distance < 0.5, noise, 0).astype(np.float32)
    ct_with_corners = np.where(distance < 0.5, 40 + 20 * noise, np.where(distance < 1.2, -1000, -2048))
    save(tmp_path / "scans" / "brain.nii.gz", skull_stripped)
    save(tmp_path / "scans" / "rounded.nii.gz", np.rint(100 * skull_stripped).astype(np.int16))
    save(tmp_path / "scans" / "ct.nii.gz", ct_with_corners.astype(np.int16))
    labels = np.where(distance < 0.9, 2, np.where(distance < 1.1, 1, 0)).astype(np.uint8)
    save(tmp_path / "scans" / "labels.nii.gz", labels)
    save(tmp_path / "scans" / "mask.nii.gz", (labels > 0).astype(np.uint8))
    report = ingest([tmp_path / "scans"], tmp_path / "s", NATIVE)
    assert sorted(path.rpartition("/")[2] for path, _ in report.quarantined) == [
        "labels.nii.gz",
        "mask.nii.gz",
    ]


def test_a_scan_is_cropped_and_stays_where_it_was(tmp_path, to_grid):
    affine = np.array([[0, 0, 2.0, 10], [1.5, 0, 0, -20], [0, -1.5, 0, 30], [0, 0, 0, 1]])
    source = read_volume(save(tmp_path / "scan.nii.gz", ct(shape=(60, 62, 64)), affine))
    ingest([tmp_path / "scan.nii.gz"], tmp_path / "s", NATIVE)
    store = Store.open(tmp_path / "s")
    (record,) = store.records()
    assert record.case == "scan"
    assert record.kind == "ct"
    assert store.read(record).orientation == "SPL"
    assert np.prod(record.shape) <= np.prod(source.shape)
    again = to_grid(store.read(record), source)
    body = source.data > -600
    assert np.array_equal(again.data[body], source.data[body])


def test_spacing_and_intensity_are_those_of_the_settings(tmp_path, scans):
    settings = IngestSettings(spacing=(2, 2, 3), intensity="ct:-200,600")
    ingest([scans], tmp_path / "s", settings)
    for record in Store.open(tmp_path / "s").records():
        assert record.spacing == pytest.approx((2, 2, 3))
        assert record.normalisation[0].lower == -200
        assert Store.open(tmp_path / "s").read(record).data.dtype == np.int16


def test_it_is_told_what_scans_were_taken_for_and_what_speaks_against_that(tmp_path, scans):
    save(tmp_path / "new" / "whole.nii.gz", ct(5))
    save(tmp_path / "new" / "clipped.nii.gz", ct(6).clip(-160, 240))
    phase = np.random.default_rng(0).integers(-4096, 4096, (20, 20, 20), np.int16)
    save(tmp_path / "new" / "phase.nii.gz", phase)
    report = ingest([tmp_path / "new"], tmp_path / "s", NATIVE)
    assert report.kinds == {"ct": 2, "mr": 1}
    doubts = {Path(source).name: reason for source, reason in report.doubtful}
    assert doubts.keys() == {"clipped.nii.gz", "phase.nii.gz"}
    assert doubts["clipped.nii.gz"].startswith("taken for CT, though it shows no air")
    assert doubts["phase.nii.gz"].startswith("taken for MR, though its values reach")
    assert ingest([tmp_path / "new"], tmp_path / "told", IngestSettings(intensity="ct")).doubtful == ()


def test_again_is_cheap_and_only_new_files_are_read(tmp_path, scans):
    events = []
    first = ingest([scans], tmp_path / "s", NATIVE, progress=events.append)
    assert (first.added, first.skipped, first.duplicates, first.quarantined) == (3, 0, 0, ())
    assert [(event.outcome, event.done, event.total) for event in events] == [
        ("added", n, 3) for n in (1, 2, 3)
    ]
    before = Store.open(tmp_path / "s").fingerprint()
    save(scans / "new.nii.gz", ct(9))
    second = ingest([scans], tmp_path / "s", NATIVE)
    assert (second.added, second.skipped) == (1, 3)
    (scans / "case0.nii.gz").touch()
    third = ingest([scans], tmp_path / "s", NATIVE)
    assert (third.added, third.skipped, third.duplicates) == (0, 4, 0)
    assert Store.open(tmp_path / "s").fingerprint() != before


def test_the_same_voxels_under_two_names_are_one_volume(tmp_path, scans):
    shutil.copy(scans / "case0.nii.gz", scans / "zz_copy.nii.gz")
    # another compression, another file, the same voxels
    (scans / "zz_plain.nii").write_bytes(gzip.decompress((scans / "case1.nii.gz").read_bytes()))
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert (report.added, report.duplicates) == (3, 2)
    assert [record.case for record in Store.open(tmp_path / "s").records()] == ["case0", "case1", "case2"]
    assert ingest([scans], tmp_path / "s", NATIVE).skipped == 5


def test_bad_scans_are_quarantined_and_the_rest_goes_on(tmp_path, scans):
    truncated = scans / "case1.nii.gz"
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[:-100])
    save(scans / "flat.nii.gz", np.full((8, 8, 8), -1000, np.int16))
    save(scans / "mask.nii.gz", (ct() > -600).astype(np.uint8) * np.arange(1, 35, dtype=np.uint8))
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert report.added == 2
    reasons = dict(report.quarantined)
    assert list(reasons) == [str(scans / name) for name in ("case1.nii.gz", "flat.nii.gz", "mask.nii.gz")]
    assert "cannot be read" in reasons[str(truncated)]
    assert "shows nothing" in reasons[str(scans / "flat.nii.gz")]
    assert Store.open(tmp_path / "s").quarantined() == list(report.quarantined)
    truncated.write_bytes(whole)
    assert ingest([scans], tmp_path / "s", NATIVE).added == 1
    assert len(Store.open(tmp_path / "s").quarantined()) == 2


def test_a_source_that_changes_into_a_copy_or_a_ruin_takes_its_volume_along(tmp_path, scans):
    ingest([scans], tmp_path / "s", NATIVE)
    shutil.copy(scans / "case0.nii.gz", scans / "case1.nii.gz")
    (scans / "case2.nii.gz").write_bytes(b"nothing")
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert (report.skipped, report.duplicates, len(report.quarantined)) == (1, 1, 1)
    store = Store.open(tmp_path / "s")
    assert [record.case for record in store.records()] == ["case0"]
    assert len(list((store.path / "volumes").glob("*.b2nd"))) == 1
    # The original goes, its copy stays: the copy becomes the volume.
    (scans / "case0.nii.gz").write_bytes(b"nothing")
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert (report.added, report.skipped) == (1, 0)
    assert [record.case for record in store.records()] == ["case1"]


def test_whatever_reading_a_scan_raises_only_that_scan_is_lost(tmp_path, scans, monkeypatch):
    def read(path):
        if path.name == "case1.nii.gz":
            raise AttributeError("no attribute 'Columns'")
        return read_volume(path)

    monkeypatch.setattr("misfm.data.scan.read_volume", read)
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert report.added == 2
    ((source, reason),) = report.quarantined
    assert source == str(scans / "case1.nii.gz")
    assert "case1.nii.gz cannot be read (no attribute 'Columns')" in reason


def test_killed_and_started_again_gives_the_same_store(tmp_path, scans, monkeypatch):
    ingest([scans], tmp_path / "whole", NATIVE)

    def killed(*_, **__):
        raise KeyboardInterrupt

    def stop_after_one(event):
        if event.done == 2:
            monkeypatch.setattr(Index, "_remember", killed)

    with pytest.raises(KeyboardInterrupt):
        ingest([scans], tmp_path / "s", NATIVE, progress=stop_after_one)
    monkeypatch.undo()
    assert len(Store.open(tmp_path / "s").records()) == 2
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert (report.added, report.skipped) == (1, 2)
    assert Store.open(tmp_path / "s").records() == Store.open(tmp_path / "whole").records()
    files = [sorted(path.name for path in (tmp_path / name / "volumes").iterdir()) for name in ("s", "whole")]
    assert files[0] == files[1]


def test_again_mends_what_was_damaged_or_lost(tmp_path, scans, caplog):
    shutil.copy(scans / "case0.nii.gz", scans / "zz_copy.nii.gz")
    ingest([scans], tmp_path / "s", NATIVE)
    store = Store.open(tmp_path / "s")
    before = store.records()
    flipped, cut, lost = (store.path / "volumes" / f"{record.id}.b2nd" for record in before)
    contents = [file.read_bytes() for file in (flipped, cut, lost)]
    flipped.write_bytes(contents[0][:500] + bytes([contents[0][500] ^ 1]) + contents[0][501:])
    cut.write_bytes(contents[1][:500])
    lost.unlink()
    report = ingest([scans], tmp_path / "s", NATIVE)
    assert (report.added, report.skipped, report.duplicates) == (3, 0, 1)
    assert f"{lost} is missing: making it again from {scans / 'case2.nii.gz'}." in caplog.messages
    assert store.records() == before
    assert [file.read_bytes() for file in (flipped, cut, lost)] == contents
    assert ingest([scans], tmp_path / "s", NATIVE).skipped == 4


def test_a_lost_index_is_made_again(tmp_path, scans):
    ingest([scans], tmp_path / "s", NATIVE)
    store = Store.open(tmp_path / "s")
    before, index = store.records(), tmp_path / "s" / "index.sqlite"
    index.write_bytes(index.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"index\.sqlite is damaged .*; delete it, then run again"):
        ingest([scans], tmp_path / "s", NATIVE)
    index.unlink()
    assert ingest([scans], tmp_path / "s", NATIVE).added == 3
    assert store.records() == before
    assert store.faults() == []


def test_faults_that_stop_an_ingest(tmp_path, scans):
    with pytest.raises(DataError, match="does not exist"):
        ingest([tmp_path / "nowhere"], tmp_path / "s", NATIVE)
    with pytest.raises(ConfigError, match="intensity rule"):
        ingest([scans], tmp_path / "s", IngestSettings(intensity="us"))
    assert not (tmp_path / "s").exists()
    ingest([scans], tmp_path / "s", NATIVE)
    with pytest.raises(ConfigError, match="made with spacing native"):
        ingest([scans], tmp_path / "s", IngestSettings(spacing=(1, 1, 1)))


def test_dask_is_imported_only_when_asked_for(tmp_path, scans):
    loaded = "distributed" in sys.modules
    ingest([scans], tmp_path / "s", NATIVE)
    assert ("distributed" in sys.modules) == loaded


@pytest.mark.slow
def test_far_too_many_workers_are_refused_before_a_folder_is_made(tmp_path, scans):
    with pytest.raises(ConfigError, match="--workers asks for 100,000 processes"):
        ingest([scans], tmp_path / "store", NATIVE, workers=100_000)
    assert not (tmp_path / "store").exists()


def test_workers_make_the_same_store(tmp_path, scans):
    (scans / "bad.nii.gz").write_bytes(b"nothing")
    shutil.copy(scans / "case0.nii.gz", scans / "zz_copy.nii.gz")
    alone = ingest([scans], tmp_path / "alone", NATIVE)
    together = ingest([scans], tmp_path / "together", NATIVE, workers=2)
    assert together == alone
    assert_equal(tmp_path / "together", tmp_path / "alone")


def assert_equal(one, other):
    """Two stores hold the same, and nothing else lies in their folders."""
    assert Store.open(one).records() == Store.open(other).records()
    names = [sorted(path.relative_to(s) for path in s.rglob("*")) for s in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.parent.name == "volumes":
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture
def cluster(tmp_path):
    """Address of a Dask scheduler with two workers, all started by hand."""
    place = tmp_path / "scheduler.json"

    def start(which, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{which}", "--no-dashboard", *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    options = ("--scheduler-file", str(place))
    started = [start("scheduler", "--host", "127.0.0.1", "--port", "0", *options)]
    started += [start("worker", *options, "--nthreads", "1", "--no-nanny") for _ in range(2)]
    while not place.exists() or not place.read_text():
        assert started[0].poll() is None
        time.sleep(0.1)
    yield json.loads(place.read_text())["address"]
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.wait()


@pytest.mark.slow
def test_a_cluster_started_by_hand_makes_the_same_store(tmp_path, scans, cluster):
    for seed in range(3, 8):
        save(scans / f"case{seed}.nii.gz", ct(seed))
    (scans / "bad.nii.gz").write_bytes(b"nothing")
    shutil.copy(scans / "case0.nii.gz", scans / "zz_copy.nii.gz")
    alone = ingest([scans], tmp_path / "alone", NATIVE)
    together = ingest([scans], tmp_path / "together", NATIVE, scheduler=cluster)
    assert together == alone
    assert_equal(tmp_path / "together", tmp_path / "alone")
    save(scans / "case1.nii.gz", ct(9))  # changes, and what it was comes back under another name
    save(scans / "case8.nii.gz", ct(1))
    for store, scheduler in (("alone", None), ("together", cluster)):
        ingest([scans], tmp_path / store, NATIVE, scheduler=scheduler)
    assert_equal(tmp_path / "together", tmp_path / "alone")
    assert Store.open(tmp_path / "together").faults() == []


def test_no_voxels_travel_from_workers(tmp_path, scans):
    (scan, *_) = find_scans([scans])
    files = VolumeFiles(tmp_path / "s" / "volumes")
    with Store.writing(tmp_path / "s", NATIVE) as store:
        entry = prepare_scan(scan, NATIVE, files)
        assert len(pickle.dumps(entry)) < 4000
        assert store.records() == []
        record = store.add(entry)
        assert np.array_equal(store.read(record).data, Store.open(tmp_path / "s").read(record).data)
        with pytest.raises(DataError, match=r"is not there: give a --store in a folder .* workers share"):
            store.add(entry)
        prepare_scan(scan, NATIVE, files)
        assert len(list((tmp_path / "s" / ".parked").iterdir())) == 1
    assert not (tmp_path / "s" / ".parked").exists()
    assert store.faults() == []


def test_a_disk_that_cannot_be_written_is_no_fault_of_a_scan(tmp_path, scans):
    (scan, *_) = find_scans([scans])
    (tmp_path / "s").write_text("in the way")
    with pytest.raises(DataError, match="cannot be made"):
        prepare_scan(scan, NATIVE, VolumeFiles(tmp_path / "s" / "volumes"))


@pytest.mark.parametrize(
    ("free", "most", "sentence"),
    [(10**12, 2, ""), (1000, 10**9, "will probably be full"), (1000, 2, "would need about")],
)
def test_an_ingest_says_what_it_will_take(tmp_path, scans, caplog, monkeypatch, free, most, sentence):
    monkeypatch.setattr(forecast, "FEWEST", 3)
    monkeypatch.setattr(forecast, "MEASURED", 1)
    monkeypatch.setattr(forecast, "FAR_TOO_MUCH", most)
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    caplog.set_level("INFO", "misfm")
    if most * free < 10**4:
        with pytest.raises(DataError, match=sentence):
            ingest([scans], tmp_path / "s", NATIVE)
        return
    ingest([scans], tmp_path / "s", NATIVE)
    assert re.search(r"About \d+ s and 0 MB of disk for the 1 scans to come, judging by", caplog.text)
    assert sentence in caplog.text


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "Dataset001_Organ"
    for seed, name in enumerate("ab"):
        save(folder / "imagesTr" / f"{name}_0000.nii.gz", ct(seed))
        label = np.zeros((30, 32, 34), np.uint8)
        label[10:18, 10:18, 10:18] = 1
        label[0, 0, 0] = 2
        label[20, 20, 20] = 3
        save(folder / "labelsTr" / f"{name}.nii.gz", label)
    labels = {"background": 0, "organ": 1, "dot": 2, "ignore": 3}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return Dataset.open(folder)


def listed(folder, **masks):
    """A ``pretrain_data.json`` beside ``CASE.nii.gz``, with an anonymisation mask for each case or None."""
    images = [
        {
            "name": case,
            "image_path": f"{case}.nii.gz",
            "modality": "CT",
            "associated_masks": mask and {"anonymization_mask": mask, "anatomy_mask": None},
        }
        for case, mask in masks.items()
    ]
    subjects = {"s": {"sessions": {"t": {"images": images}}}}
    content = {"collection_index": 1, "collection_name": "C", "datasets": {"d": {"subjects": subjects}}}
    (folder / "pretrain_data.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("spacing", ["native", (0.7, 0.8, 2.5)])
def test_a_mask_of_what_was_removed_follows_its_scan(tmp_path, scans, to_grid, spacing):
    face = np.zeros((30, 32, 34), np.uint8)
    face[:, :12, 20:] = 255
    save(scans / "masks" / "face.nii.gz", face)
    report = ingest(
        [listed(scans, case0="masks/face.nii.gz", case1=None)],
        tmp_path / "s",
        IngestSettings(spacing=spacing),
    )
    assert (report.added, report.quarantined) == (2, ())
    store = Store.open(tmp_path / "s")
    masked, plain = store.records()
    assert (masked.anonymised, plain.anonymised) == (True, False)
    whole = Box((0, 0, 0), masked.shape)
    removed = Volume(store.read_anonymised_patch(masked, whole)[None], masked.affine)
    expected = to_grid(read_volume(scans / "masks" / "face.nii.gz"), removed).data > 0
    assert 0.01 < expected.mean() < 0.5
    # Voxels half in and half out may be counted to either side.
    assert (removed.data != expected).mean() < (1e-9 if spacing == "native" else 0.02)
    assert not removed.data[0][tuple(store.anchors(masked).T)].any()


def test_scans_whose_mask_cannot_be_used_stand_aside(tmp_path, scans):
    save(scans / "small.nii.gz", np.ones((30, 32, 33), np.uint8))
    save(scans / "moved.nii.gz", np.ones((30, 32, 34), np.uint8), np.diag([-1.0, -1.0, 1.1, 1.0]))
    save(scans / "all.nii.gz", np.ones((30, 32, 34), np.uint8))
    source = listed(scans, case0="small.nii.gz", case1="gone.nii.gz", case2="all.nii.gz")
    report = ingest([source], tmp_path / "s", NATIVE)
    assert report.added == 0
    reasons = [reason for _, reason in report.quarantined]
    assert "small.nii.gz lies on another grid than case0.nii.gz" in reasons[0]
    assert "gone.nii.gz does not exist" in reasons[1]
    assert "case2.nii.gz covers the whole patient" in reasons[2]
    assert ingest([listed(scans, case0="moved.nii.gz")], tmp_path / "s", NATIVE).added == 0
    assert ingest([listed(scans, case0=None)], tmp_path / "s", NATIVE).added == 1
    assert len(Store.open(tmp_path / "s").quarantined()) == 2


def test_a_mask_that_changes_makes_another_volume(tmp_path, scans):
    face = np.zeros((30, 32, 34), np.uint8)
    face[:, :12, 20:] = 1
    save(scans / "masks" / "face.nii.gz", face)
    ingest([scans / "case0.nii.gz"], tmp_path / "s", NATIVE)
    source = listed(scans, case0="masks/face.nii.gz")
    # Found twice, the scan keeps the mask.
    assert ingest([scans / "case0.nii.gz", source], tmp_path / "s", NATIVE).added == 1
    (first,) = Store.open(tmp_path / "s").records()
    assert ingest([source], tmp_path / "s", NATIVE).skipped == 1
    face[:, 12:14] = 1
    save(scans / "masks" / "face.nii.gz", face)
    assert ingest([source], tmp_path / "s", NATIVE).added == 1
    (second,) = Store.open(tmp_path / "s").records()
    assert first.anonymised
    assert second.anonymised
    assert first.id != second.id
    assert len(list((tmp_path / "s" / "volumes").glob("*.b2nd"))) == 2


@pytest.mark.parametrize("masked_first", [True, False])
def test_a_copy_of_a_scan_without_its_mask_does_not_bring_the_face_back(tmp_path, scans, masked_first):
    face = np.zeros((30, 32, 34), np.uint8)
    face[:, :12, 20:] = 1
    save(scans / "masks" / "face.nii.gz", face)
    copy = tmp_path / "copy" / "case0.nii.gz"
    copy.parent.mkdir()
    copy.write_bytes((scans / "case0.nii.gz").read_bytes())
    sources = [listed(scans, case0="masks/face.nii.gz"), copy]
    for source in sources if masked_first else sources[::-1]:
        ingest([source], tmp_path / "s", NATIVE)
    (record,) = Store.open(tmp_path / "s").records()
    assert record.anonymised
    assert ingest(sources, tmp_path / "s", NATIVE).added == 0


def test_labelled_cases_keep_every_label(tmp_path, dataset, to_grid):
    store = ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE)
    assert [record.case for record in store.records()] == ["a", "b"]
    for case, record in zip(dataset.cases(), store.records(), strict=True):
        image, label = dataset.read_case(case)
        assert label is not None
        # The dot lies in the air, where the crop to content would have cut it off.
        assert record.labels == (0, 1, 2, 3)
        assert np.array_equal(to_grid(store.read_label(record), label).data, label.data)
        assert np.array_equal(
            to_grid(store.read(record), image).data[label.data > 0], image.data[label.data > 0]
        )
        assert sorted(store.label_anchors(record)) == [1, 2, 3]
    assert ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE).records() == store.records()


def test_it_is_known_where_labels_lie_apart_from_the_patient(tmp_path, dataset):
    voxels = np.full((24, 24, 60), -1000, np.int16)
    voxels[..., :30] = 40
    save(dataset.path / "imagesTr" / "b_0000.nii.gz", voxels)
    save(dataset.path / "labelsTr" / "b.nii.gz", (np.indices(voxels.shape)[2] == 59).astype(np.uint8))
    near, apart = ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE).records()
    assert not near.labels_apart
    assert apart.labels_apart


def test_a_damaged_case_is_read_again(tmp_path, dataset):
    store = ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE)
    label = store.path / "volumes" / f"{store.records()[1].id}.label.b2nd"
    whole = label.read_bytes()
    label.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    events = []
    ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE, progress=events.append)
    assert [event.outcome for event in events] == ["skipped", "added"]
    assert label.read_bytes() == whole


def test_image_and_label_share_the_resampled_grid(tmp_path, dataset):
    store = ingest_dataset(
        dataset, dataset.cases()[:1], tmp_path / "s", IngestSettings(spacing=(0.7, 0.9, 0.8))
    )
    (record,) = store.records()
    assert store.read_label(record).shape == record.shape
    volume = np.prod(record.spacing) * (store.read_label(record).data == 1).sum()
    assert volume == pytest.approx(8**3, rel=0.1)


def test_a_faulty_or_unlabelled_case_stops_the_ingest(tmp_path, dataset):
    (dataset.path / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"Case b of .* has no label map"):
        ingest_dataset(dataset, dataset.cases(), tmp_path / "s", NATIVE)


def test_unlabelled_images_of_a_dataset_can_be_ingested(tmp_path, dataset):
    assert ingest([dataset.path], tmp_path / "s", NATIVE).added == 2
    assert {record.labels for record in Store.open(tmp_path / "s").records()} == {None}


def test_damaged_anchors_are_made_again_with_their_volume(tmp_path, scans):
    store = tmp_path / "store"
    assert ingest([scans], store, IngestSettings()).added
    (store / "volumes" / f"{Store.open(store).records()[0].id}.places").write_bytes(b"damaged")
    assert ingest([scans], store, IngestSettings()).added == 1
    opened = Store.open(store)
    assert all(opened.anchors(record).any() for record in opened.records())


def test_another_key_file_than_that_of_the_store_is_refused(tmp_path, scans):
    ingest([scans], tmp_path / "store", IngestSettings(), pseudonyms=tmp_path / "keys.csv")
    with pytest.raises(ConfigError, match=r"other\.csv has none of the \d+ scans of"):
        ingest([scans], tmp_path / "store", IngestSettings(), pseudonyms=tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()
