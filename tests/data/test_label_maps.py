"""``--store labels:DIR``: a folder of label maps becomes volumes that images are drawn for."""

import json

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.pretrain import pretrain
from misfm.config import PretrainSettings
from misfm.data.generated import open_store, parts_of
from misfm.data.label_maps import SPACINGS, TABLE, of_people, read_table
from misfm.errors import ConfigError, DataError
from misfm.resolve import resolve
from misfm.synthesis.label_table import FIRST
from misfm.weights.file import read as read_weights


@pytest.fixture
def folder(tmp_path):
    """Three people, each a body (7, unnamed) with a left (1) and a right (2) structure."""
    made = tmp_path / "maps"
    made.mkdir()
    for person in range(3):
        label = np.zeros((48, 40, 44), np.int16)
        label[6:42, 6:34, 6:38] = 7
        label[10:16, 12 + person : 18, 12:20] = 1
        label[30:36, 12 + person : 18, 12:20] = 2
        nib.save(nib.Nifti1Image(label, np.diag([1.0, 1, 1, 1])), made / f"person_{person}.nii.gz")
    (made / "labels.json").write_text(json.dumps({"names": {"1": "right kidney", "2": "left kidney"}}))
    return made


def test_each_label_map_is_there_at_every_spacing(folder, tmp_path):
    store = open_store(f"labels:{folder}", tmp_path / "run")
    records = store.records()
    assert len(records) == 3 * len(SPACINGS)
    assert sorted({record.spacing[0] for record in records}) == list(SPACINGS)
    assert of_people(records).all()
    assert len({record.fingerprint for record in records}) == 3
    table = read_table(store)
    assert table.names == ("background", "right kidney", "left kidney", "unnamed 7")
    fine = next(record for record in records if record.spacing[0] == 1)
    found = store.read_label(fine).data
    assert set(np.unique(found)) == {FIRST, FIRST + 1, FIRST + 2, FIRST + 3}
    assert (found == FIRST + 1).sum() == 6 * 8 * (6 - int(fine.case[-1]))
    assert (store.read(fine).data[found > FIRST] > store.read(fine).data[found == FIRST].max()).all()


def test_a_table_of_labels_with_a_flipped_bit_is_refused_and_a_lost_one_made_again(folder, tmp_path):
    store = open_store(f"labels:{folder}", tmp_path / "run")
    path, before = store.path / TABLE, read_table(store)
    whole = path.read_text()
    for damaged in (whole.replace("left", "lefu"), whole.replace("checksum", "checksul"), whole[:40], "[1]"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"label_table.json is damaged; delete the store"):
            read_table(store)
    path.unlink()
    with pytest.raises(DataError, match=r"label_table.json is gone"):
        read_table(store)
    open_store(f"labels:{folder}", tmp_path / "run")
    assert path.read_text() == whole
    path.write_text(json.dumps(before.model_dump(mode="json")))  # as misfm 0.1.0 wrote it
    assert read_table(store) == before


def test_small_structures_are_centred_on_as_often_as_the_body(folder, tmp_path):
    store = open_store(f"labels:{folder}", tmp_path / "run")
    record = next(record for record in store.records() if record.spacing[0] == 1)
    centres = store.anchors(record)
    labels = store.read_label(record).data[0][tuple(centres.T)]
    assert (labels == FIRST + 1).mean() == pytest.approx(0.25, abs=0.05)


def test_a_second_time_nothing_is_read(folder, tmp_path, monkeypatch):
    first = open_store(f"labels:{folder}", tmp_path / "run").fingerprint()
    monkeypatch.setattr("misfm.data.label_maps.read_volume", None)
    assert open_store(f"labels:{folder}", tmp_path / "run").fingerprint() == first


def test_a_damaged_volume_is_made_again(folder, tmp_path):
    store = open_store(f"labels:{folder}", tmp_path / "run")
    coarse = max(store.records(), key=lambda record: record.spacing)
    file = store.path / "volumes" / f"{coarse.id}.label.b2nd"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert open_store(f"labels:{folder}", tmp_path / "run").faults() == []
    assert file.read_bytes() == whole


def test_pretraining_on_label_maps_beside_generated_anatomy(folder, tmp_path):
    settings = resolve(
        PretrainSettings,
        recipe="label-maps",
        options={
            "store": f"phantom:2+labels:{folder}",
            "patch_size": (16, 16, 16),
            "network.options": {"channels": [4, 8]},
            "training.steps": 2,
            "validation_batches": 1,
        },
    )
    numbers = pretrain(settings, tmp_path / "run")
    assert 0 <= numbers["validation_pretext_dice"] <= 1
    _, info = read_weights(tmp_path / "run" / "weights.safetensors")
    assert info.pretext == "label-maps"
    assert info.num_classes == FIRST + 2
    volumes = json.loads((tmp_path / "run" / "volumes.json").read_text())
    records = {record.id: record for record in open_store(settings.store, tmp_path / "run").records()}
    parts = [{records[i].fingerprint for i in volumes[part]} for part in ("train", "val")]
    assert not parts[0] & parts[1]  # a person is on one side, at all spacings


def test_a_folder_without_label_maps_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"takes a folder of label maps, and '.*nothing' is none"):
        open_store(f"labels:{tmp_path / 'nothing'}", tmp_path / "run")
    with pytest.raises(ConfigError, match="takes a folder of label maps"):
        open_store("labels:", tmp_path / "run")
    with pytest.raises(DataError, match="0 label map"):
        open_store(f"labels:{tmp_path}", tmp_path / "run")
    (folder / "labels.json").write_text("[]")
    with pytest.raises(DataError, match=r"labels.json is not a list of names"):
        open_store(f"labels:{folder}", tmp_path / "run")


def test_a_scan_among_label_maps_is_refused_by_name(folder, tmp_path):
    scan = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan.nii.gz is no label map"):
        open_store(f"labels:{folder}", tmp_path / "run")


def test_label_maps_that_came_later_are_added_and_other_labels_refused(folder, tmp_path):
    open_store(f"labels:{folder}", tmp_path / "run")
    again = nib.load(folder / "person_0.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(again.dataobj)[2:], again.affine), folder / "person_3.nii.gz")
    assert len(open_store(f"labels:{folder}", tmp_path / "run").records()) == 4 * len(SPACINGS)
    other = np.asarray(again.dataobj).copy()
    other[other == 2] = 3
    nib.save(nib.Nifti1Image(other, again.affine), folder / "person_4.nii.gz")
    with pytest.raises(ConfigError, match="have changed since"):
        open_store(f"labels:{folder}", tmp_path / "run")


def test_coarse_label_maps_are_not_blown_up(folder, tmp_path):
    for path in folder.glob("*.nii.gz"):
        coarse = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(coarse.dataobj), np.diag([4.0, 4, 4, 1])), path)
    records = open_store(f"labels:{folder}", tmp_path / "run").records()
    assert [record.spacing for record in records] == [(3.5, 3.5, 3.5)] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretext.name": "phantom-anatomy"}, "draws no images for label maps"),
        ({"batch_size": 1}, "Half of each"),
    ],
)
def test_what_does_not_go_with_label_maps_is_refused_and_leaves_nothing(folder, tmp_path, options, message):
    store = f"phantom:2+labels:{folder}"
    settings = resolve(PretrainSettings, recipe="label-maps", options={"store": store, **options})
    with pytest.raises(ConfigError, match=message):
        pretrain(settings, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


@pytest.mark.parametrize("change", ["names", "gone", "replaced"])
def test_a_store_of_label_maps_that_have_changed_is_refused(folder, tmp_path, change):
    open_store(f"labels:{folder}", tmp_path / "run")
    if change == "names":
        (folder / "labels.json").write_text(json.dumps({"names": {"1": "liver"}}))
    elif change == "gone":
        nib.save(nib.load(folder / "person_0.nii.gz"), folder / "person_3.nii.gz")
        (folder / "person_0.nii.gz").unlink()
    else:
        other = np.asarray(nib.load(folder / "person_1.nii.gz").dataobj)[:, 1:]
        nib.save(nib.Nifti1Image(other, np.eye(4)), folder / "person_0.nii.gz")
    with pytest.raises(ConfigError, match="have changed since"):
        open_store(f"labels:{folder}", tmp_path / "run")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"77": "liver"}, "nothing to segment"),
        ({"1": "kidney", "2": "kidney"}, "calls several values 'kidney'"),
    ],
)
def test_names_that_teach_nothing_are_refused(folder, tmp_path, names, message):
    (folder / "labels.json").write_text(json.dumps({"names": names}))
    with pytest.raises(DataError, match=message):
        open_store(f"labels:{folder}", tmp_path / "run")


def test_an_empty_label_map_is_refused_by_name(folder, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.eye(4)), folder / "empty.nii.gz")
    with pytest.raises(DataError, match=r"empty.nii.gz holds no label"):
        open_store(f"labels:{folder}", tmp_path / "run")


def test_the_two_parts_of_a_store_may_come_in_any_order(folder):
    assert parts_of(f"phantom:4+labels:{folder}") == ("phantom:4", folder)
    assert parts_of(f"labels:{folder}+phantom:4") == ("phantom:4", folder)
    assert parts_of(f"labels:{folder}") == (None, folder)
    assert parts_of("phantom:4") == ("phantom:4", None)
