"""misfm convert on DICOM: series, and the SEG and RTSTRUCT that refer to them, become a dataset."""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from misfm.data.convert import carry_out, plan
from misfm.data.dataset import Dataset
from misfm.data.dataset_faults import faults
from misfm.data.layouts import recognise
from misfm.data.readers import read_volume
from misfm.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from odd_dicom_files import ORIGIN, SPACING, write_rtstruct, write_seg, write_series


def body(seed):
    voxels = np.random.default_rng(seed).integers(1000, 1100, (6, 20, 16)).astype(np.uint16)
    voxels[:, :3], voxels[:, -3:] = 24, 24
    return voxels


def square(slice_number, start, stop):
    corners = [(start, start), (start, stop), (stop, stop), (stop, start)]
    depth = ORIGIN[2] + 3.0 * slice_number
    return np.array([(ORIGIN[0] + w * SPACING[1], ORIGIN[1] + h * SPACING[0], depth) for h, w in corners])


@pytest.fixture
def study(tmp_path):
    """Two visits of one patient and one of another: SEG, RTSTRUCT, both; and a series without either."""
    source = tmp_path / "source"
    liver = np.zeros((6, 20, 16), np.uint8)
    liver[2:4, 6:12, 5:9] = 1
    for number, (visit, patient) in enumerate((("A1", "7781"), ("A2", "7781"), ("B", "9942"))):
        tags = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": patient, "StudyInstanceUID": f"1.{number}"}
        write_series(source / visit / "ct", body(number), **tags)
    for visit in ("A1", "B"):
        write_seg(source / visit / "seg.dcm", source / visit / "ct", liver, {1: "liver"})
    structures = {"cord": [square(3, 6.5, 8.5)], "empty": []}
    for number, (visit, patient) in enumerate((("A1", "7781"), ("A2", "7781"))):
        write_rtstruct(
            source / visit / "rs.dcm",
            structures,
            series=f"1.2.{number}",
            PatientID=patient,
            StudyInstanceUID=f"1.{number}",
        )
    write_series(source / "B" / "other", body(9), SeriesInstanceUID="1.2.9")
    return source


def test_a_tree_of_studies_becomes_a_dataset(study, tmp_path):
    out = tmp_path / "Dataset001"
    arrangement = recognise(study)
    assert arrangement.rule.startswith("DICOM; label maps are SEG and RTSTRUCT")
    assert any(note.startswith("1 series without SEG or RTSTRUCT") for note in arrangement.notes)
    carry_out(plan(arrangement, study, out))
    content = json.loads((out / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "cord": 1, "liver": 2}
    assert content["channel_names"] == {"0": "CT"}
    assert content["annotated_labels"] == {"A2_ct": ["cord"], "B_ct": ["liver"]}
    assert content["subjects"] == {"A1_ct": "subject-001", "A2_ct": "subject-001", "B_ct": "subject-002"}
    assert "7781" not in (out / "dataset.json").read_text()
    assert faults(Dataset.open(out), voxels=True) == []
    image = read_volume(out / "imagesTr" / "A1_ct_0000.nii.gz")
    scan = read_volume(study / "A1" / "ct")
    assert np.array_equal(image.data, scan.data)
    assert image.affine == pytest.approx(scan.affine, abs=1e-4)
    label = np.asanyarray(nib.load(out / "labelsTr" / "A1_ct.nii.gz").dataobj).transpose(2, 1, 0)
    assert (label == 1).sum() == 4
    assert (label == 2).sum() == 48 - 4
    assert set(np.unique(label[3, 7:9, 7:9])) == {1}


def test_a_study_that_comes_later_shifts_no_number(study, tmp_path):
    out = tmp_path / "Dataset001"
    carry_out(plan(recognise(study), study, out))
    tags = {"SeriesInstanceUID": "1.2.7", "PatientID": "1", "StudyInstanceUID": "1.7"}
    write_series(study / "A0" / "ct", body(7), **tags)
    write_seg(study / "A0" / "seg.dcm", study / "A0" / "ct", np.ones((6, 20, 16), np.uint8), {1: "aorta"})
    counts, _ = carry_out(plan(recognise(study), study, out))
    assert (counts["written"], counts["unchanged"]) == (2, 6)
    content = json.loads((out / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "cord": 1, "liver": 2, "aorta": 3}
    assert content["annotated_labels"]["A1_ct"] == ["cord", "liver"]
    known = {"A1_ct": "subject-001", "A2_ct": "subject-001", "B_ct": "subject-002"}
    assert content["subjects"] == {**known, "A0_ct": "subject-003"}
    assert set(np.unique(nib.load(out / "labelsTr/A0_ct.nii.gz").dataobj)) == {3}
    second = sorted((study / "B" / "ct").iterdir())[1]
    os.utime(second, (1e9, 1e9))
    assert carry_out(plan(recognise(study), study, out))[0]["written"] == 2


def test_a_linked_study_is_found(study, tmp_path):
    (study / "B").rename(tmp_path / "B")
    (study / "B").symlink_to(tmp_path / "B")
    assert [case.name for case in recognise(study).cases] == ["A1_ct", "A2_ct", "B_ct"]


def test_one_structure_drawn_twice_in_a_series_is_refused(study, tmp_path):
    liver = np.ones((6, 20, 16), np.uint8)
    write_seg(study / "B" / "second.dcm", study / "B" / "ct", liver, {1: "liver"})
    with pytest.raises(DataError, match="both have 'liver' of one series"):
        carry_out(plan(recognise(study), study, tmp_path / "out"))


def test_what_gave_no_voxel_counts_as_not_drawn(study, tmp_path):
    far = square(3, 6.5, 8.5) + np.array([0, 0, 500])
    file = write_rtstruct(
        study / "A2" / "rs.dcm",
        {"cord": [square(3, 6.5, 8.5)], "liver": [far], "isocentre": [square(3, 6.5, 8.5)[:1]]},
        series="1.2.1",
        PatientID="7781",
        StudyInstanceUID="1.1",
    )
    one = pydicom.dcmread(file)
    one.ROIContourSequence[2].ContourSequence[0].ContourGeometricType = "POINT"
    one.save_as(file)
    content = plan(recognise(study), study, tmp_path / "out").content
    assert content["labels"] == {"background": 0, "cord": 1, "liver": 2}
    assert content["annotated_labels"] == {"A2_ct": ["cord"], "B_ct": ["liver"]}


def test_label_objects_without_their_series(study):
    for path in [*study.rglob("ct/*"), *study.rglob("other/*")]:
        if path.parent.parent.name != "B" or path.parent.name == "ct":
            path.unlink()
    with pytest.raises(DataError, match="no SEG or RTSTRUCT refers to a series in it"):
        recognise(study)


def test_the_command_converts_and_names_what_it_recognised(study, tmp_path, run_command):
    done = run_command("convert", study, "--out", tmp_path / "Dataset002", "--json")
    assert done.status == 0
    assert done.result["training_cases"] == 3
    assert "Recognised: DICOM; label maps are SEG and RTSTRUCT" in done.err
