"""Channels of a case as one volume of a store: which files belong together, and what stands aside."""

import json

import nibabel as nib
import numpy as np
import pytest

from misfm.data.channels import join_channels, same_names
from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.data.scan import find_scans
from misfm.data.store import Store
from misfm.errors import ConfigError

TOGETHER = IngestSettings(channels="together")


def save(path, seed, *, kind="mr", shape=(9, 10, 11)):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(400, 100, shape)
    if kind == "ct":
        voxels = np.where(voxels > 400, 40, -1000) + np.random.default_rng(seed).normal(0, 9, shape)
    if kind == "empty":
        voxels = np.zeros(shape)
    nib.save(nib.Nifti1Image(np.rint(voxels).astype(np.int16), np.eye(4)), path)


def found(folder):
    return {scan.case: tuple(one.path.name for one in scan.channels) for scan in joined(folder)}


def joined(folder):
    return [scan for scan in join_channels(find_scans([folder])) if hasattr(scan, "channels")]


def records(folder, store, settings=TOGETHER):
    ingest([folder], store, settings)
    return Store.open(store).records()


def test_numbered_files_of_a_folder_are_channels_of_a_case(tmp_path):
    for number, name in enumerate(["b_0000", "b_0001", "a_0001", "a_0000"]):
        save(tmp_path / f"{name}.nii.gz", number)
    assert found(tmp_path) == {
        "a": ("a_0000.nii.gz", "a_0001.nii.gz"),
        "b": ("b_0000.nii.gz", "b_0001.nii.gz"),
    }
    record, _ = records(tmp_path, tmp_path / "store")
    assert (record.case, record.channels, record.channel_names) == ("a", 2, ())
    assert len(record.scans) == 2


def test_numbers_that_are_of_scans_are_left_alone(tmp_path):
    for name in ("scan_0001", "scan_0002", "ct"):
        save(tmp_path / f"{name}.nii.gz", int(name[-1]) if name != "ct" else 7)
    assert found(tmp_path) == {}
    assert [record.channels for record in records(tmp_path, tmp_path / "store")] == [1, 1, 1]


def test_files_with_the_name_of_their_folder_are_channels_in_a_fixed_order(tmp_path):
    for case in ("BraTS-1", "BraTS-2"):
        for number, channel in enumerate(["flair", "t2w", "seg", "t1n"]):
            save(tmp_path / "scans" / case / f"{case}-{channel}.nii.gz", number)
    assert {scan.case: scan.names for scan in joined(tmp_path)} == dict.fromkeys(
        ("BraTS-1", "BraTS-2"), ("T1", "T2", "FLAIR")
    )


@pytest.mark.parametrize("name", ["{case}_{channel}", "{case}/{channel}"])
def test_files_with_words_for_channels_are_channels(tmp_path, name):
    for case in ("ann", "ben"):
        for number, channel in enumerate(["pet", "ct", "seg"]):
            kind = "ct" if channel == "ct" else "mr"
            path = name.format(case=case, channel=channel)
            save(tmp_path / "scans" / f"{path}.nii.gz", number + 10 * (case == "ben"), kind=kind)
    for record in records(tmp_path, tmp_path / "store"):
        assert record.channel_names == ("CT", "PET")
        assert record.channel_kinds == ("ct", "pet")
    assert [record.case for record in Store.open(tmp_path / "store").records()] == ["ann", "ben"]


def test_a_dataset_names_its_channels_and_what_they_are(tmp_path):
    save(tmp_path / "d/imagesTr/p_0000.nii.gz", 0, kind="ct")
    save(tmp_path / "d/imagesTr/p_0001.nii.gz", 1)
    content = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "x": 1}}
    (tmp_path / "d/dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    (record,) = records(tmp_path / "d", tmp_path / "store")
    assert record.channel_kinds == ("ct", "pet")
    assert record.channel_names == ("CT", "PET")
    ct, pet = record.normalisation
    assert (ct.lower, ct.unit) == (-1000, None)
    assert pet.unit == pytest.approx(400, rel=0.1)


def test_a_case_that_lacks_a_channel_and_one_on_two_grids_stand_aside_and_the_rest_goes_on(tmp_path):
    for case in ("lacking", "shifted", "whole"):
        save(tmp_path / f"{case}_0000.nii.gz", 0 + len(case))
        if case != "lacking":
            save(tmp_path / f"{case}_0001.nii.gz", 9, shape=(9, 10, 12 if case == "shifted" else 11))
    report = ingest([tmp_path], tmp_path / "store", TOGETHER)
    reasons = {source.rpartition("/")[2]: reason for source, reason in report.quarantined}
    assert "case lacking is without channel 0001" in reasons["lacking_0000.nii.gz"]
    assert "shifted_0001.nii.gz lies on another grid" in reasons["shifted_0000.nii.gz"]
    assert [record.case for record in Store.open(tmp_path / "store").records()] == ["whole"]


def test_a_channel_may_be_empty_and_all_may_not(tmp_path):
    for case, kind in (("one", "mr"), ("none", "empty")):
        save(tmp_path / f"{case}_0000.nii.gz", 3, kind="empty")
        save(tmp_path / f"{case}_0001.nii.gz", 4, kind=kind)
    (record,) = records(tmp_path, tmp_path / "store")
    assert (record.case, len(record.scans)) == ("one", 1)


def test_a_case_is_known_by_the_content_of_all_its_channels(tmp_path):
    for folder in ("here", "copied"):
        for number in (0, 1):
            save(tmp_path / folder / f"p_{number:04d}.nii.gz", number)
    save(tmp_path / "other/p_0000.nii.gz", 0)
    save(tmp_path / "other/p_0001.nii.gz", 5)
    report = ingest([tmp_path], tmp_path / "store", TOGETHER)
    assert (report.added, report.duplicates) == (2, 1)
    again = ingest([tmp_path], tmp_path / "store", TOGETHER)
    assert (again.added, again.skipped) == (0, 3)
    save(tmp_path / "other/p_0001.nii.gz", 6)  # the second channel alone has changed
    assert ingest([tmp_path], tmp_path / "store", TOGETHER).added == 1


def test_a_rule_for_each_channel_needs_channels_together(tmp_path):
    for number in (0, 1):
        save(tmp_path / f"scans/p_{number:04d}.nii.gz", number)
    (record,) = records(
        tmp_path / "scans", tmp_path / "a", IngestSettings(intensity="mr/pet", channels="together")
    )
    assert record.channel_kinds == ("mr", "pet")
    with pytest.raises(ConfigError, match="add --channels together"):
        ingest([tmp_path / "scans"], tmp_path / "b", IngestSettings(intensity="mr/pet"))
    with pytest.raises(ConfigError, match="intensity mr/pet and channels together, not"):
        ingest([tmp_path / "scans"], tmp_path / "a", IngestSettings(intensity="mr"))


def test_settings_of_stores_with_channels_apart_are_written_as_before():
    assert IngestSettings().model_dump_json() == '{"spacing":"native","intensity":"auto"}'


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("T1", "FLAIR"), ("t1", "Flair"), True),
        (("T1", "T2"), (), True),
        (("T1", "T2"), ("T2", "T1"), False),
    ],
)
def test_channels_are_the_same_where_their_names_are(one, other, same):
    assert same_names(one, other) == same
