"""What a path holds: scans, stores, datasets, predictions and runs, and where their label maps are."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import yaml
from viewer.conftest import label_map_of, save, scan_of

from misfm.commands.view import collection_of
from misfm.data.record import IngestSettings
from misfm.errors import ConfigError, DataError
from misfm.files import write_json
from misfm.viewer import Session


def names(collection):
    return [case.name for case in collection.cases]


def test_a_dataset_has_its_cases_with_label_maps(material):
    found = collection_of(material / "Dataset001")
    assert names(found) == ["anna", "bert", "carl"]
    case = found.cases[1]
    assert case.image().volume.shape == (16, 28, 30)
    assert case.image().kinds == ("ct",)
    assert np.array_equal(case.reference().data[0].T, label_map_of(0))
    assert dict(case.labels) == {"liver": (1,), "tumour": (2,)}
    assert case.prediction is None


def test_predictions_find_their_scans_and_the_references_beside_these(material):
    found = collection_of(material / "masks")
    assert names(found) == ["anna", "bert", "carl"]
    case = found.cases[2]
    assert np.array_equal(case.image().volume.data[0].T, scan_of(2))
    assert np.array_equal(case.prediction(case.image).data[0].T, label_map_of(2))
    assert np.array_equal(case.reference().data[0].T, label_map_of(0))


def test_references_that_are_given_are_taken_by_name(material, tmp_path):
    save(tmp_path / "drawn" / "bert.nii.gz", label_map_of(1))
    found = collection_of(material / "masks", tmp_path / "drawn")
    assert [case.reference is not None for case in found.cases] == [False, True, False]
    assert Session(found).label_facts(1)["dice"] == 1


def test_a_scan_finds_its_reference_or_takes_the_one_that_is_given(material, tmp_path):
    scan = material / "Dataset001" / "imagesTr" / "carl_0000.nii.gz"
    (case,) = collection_of(scan).cases
    assert np.array_equal(case.reference().data[0].T, label_map_of(0))
    assert case.labels is not None
    alone = tmp_path / "alone.nii.gz"
    shutil.copy(scan, alone)
    assert collection_of(alone).cases[0].reference is None
    save(tmp_path / "other.nii.gz", label_map_of(2))
    (case,) = collection_of(alone, tmp_path / "other.nii.gz").cases
    facts = Session(collection_of(alone, tmp_path / "other.nii.gz")).label_facts(0)
    assert [row["name"] for row in facts["labels"]] == ["label 1", "label 2"]
    assert facts["has"] == ["reference"]


def test_a_tree_of_scans_has_them_all(material):
    found = collection_of(material / "Dataset001" / "imagesTr")
    assert len(found.cases) == 3
    assert all(case.reference is not None for case in found.cases)


def test_label_maps_on_another_grid_are_shown_and_not_compared(material, tmp_path):
    nib.save(nib.Nifti1Image(label_map_of(0)[:-2], np.eye(4)), tmp_path / "anna.nii.gz")
    session = Session(collection_of(material / "masks", tmp_path))
    facts = session.label_facts(0)
    assert facts["has"] == ["reference", "prediction"]
    assert "cannot be compared" in facts["faults"][0]
    assert "dice" not in facts


def test_ignored_voxels_are_no_errors(copied):
    dataset = copied / "Dataset001"
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
    }
    write_json(dataset / "dataset.json", {**content, "numTraining": 3, "file_ending": ".nii.gz"})
    reference = label_map_of(0)
    wrong = reference != label_map_of(2)
    reference[wrong] = 3
    save(dataset / "labelsTr" / "carl.nii.gz", reference)
    session = Session(collection_of(copied / "masks", dataset / "labelsTr"))
    facts = session.label_facts(2)
    assert facts["worst"] is None
    assert facts["dice"] == 1
    assert [row["name"] for row in facts["labels"]] == ["liver", "tumour"]


def test_a_store_shows_its_volumes(material, tmp_path):
    from misfm.data.dataset import Dataset
    from misfm.data.ingest import ingest_dataset

    dataset = Dataset.open(material / "Dataset001")
    ingest_dataset(dataset, dataset.cases(), tmp_path / "store", IngestSettings())
    found = collection_of(tmp_path / "store")
    assert names(found) == ["anna", "bert", "carl"]
    facts = Session(found).image_facts(0)
    assert facts["channels"][0]["kind"] == "ct"
    assert "Ingested from" in facts["notes"][0]
    assert Session(found).label_facts(0)["has"] == ["reference"]


@pytest.fixture
def run(copied):
    """A run that has not ended: it has chosen its cases, and has no weights."""
    folder = copied / "run"
    folder.mkdir()
    settings = {"dataset": str(copied / "Dataset001"), "weights": "none"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_json(folder / "split.json", [{"train": ["anna"], "val": ["bert", "carl"]}])
    return folder


def test_a_run_shows_its_validation_cases_with_their_scores(run):
    scores = {
        "bert": {"liver": {"dice": 0.5}, "tumour": None},
        "carl": {"liver": {"dice": 0.9}, "tumour": {"dice": 0.7}},
    }
    write_json(run / "validation.json", {"cases": scores})
    found = collection_of(run)
    assert names(found) == ["bert", "carl"]
    assert [case["dice"] for case in Session(found).listing()["cases"]] == [0.5, pytest.approx(0.8)]
    assert "no weights" in found.notes[0]
    assert found.cases[0].reference is not None


def test_a_run_whose_dataset_has_gone_says_so(run, copied):
    shutil.rmtree(copied / "Dataset001")
    with pytest.raises(DataError, match="are gone"):
        collection_of(run)


def test_a_case_that_has_gone_from_the_dataset_says_so_when_it_is_opened(run, copied):
    (copied / "Dataset001" / "imagesTr" / "bert_0000.nii.gz").unlink()
    found = collection_of(run)
    assert sorted(names(found)) == ["bert", "carl"]
    lost = next(case for case in found.cases if case.name == "bert")
    with pytest.raises(DataError, match="does not hold case bert"):
        lost.image()


def test_a_run_without_validation_cases_shows_those_it_trained_on(run):
    write_json(run / "split.json", [{"train": ["anna"], "val": []}])
    found = collection_of(run)
    assert names(found) == ["anna"]
    assert "trained on" in found.notes[0]


def test_folds_are_shown_together(run, copied):
    folds = copied / "folds"
    for number, name in enumerate(("anna", "bert")):
        shutil.copytree(run, folds / f"fold_{number}")
        others = [other for other in ("anna", "bert", "carl") if other != name]
        write_json(folds / f"fold_{number}" / "split.json", [{"train": others, "val": [name]}])
    assert names(collection_of(folds)) == ["anna", "bert"]


def test_a_pretraining_has_nothing_to_show(run):
    (run / "config.yaml").write_text("store: scans\n")
    with pytest.raises(DataError, match="misfm view scans"):
        collection_of(run)


def test_weights_and_references_of_what_has_its_own_are_refused(material, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="weights file"):
        collection_of(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="leave --references out"):
        collection_of(material / "Dataset001", material / "masks")
    with pytest.raises(DataError, match="does not exist"):
        collection_of(material / "masks", tmp_path / "nothing")


def test_a_prediction_that_is_made_is_made_once(material):
    from dataclasses import replace

    asked = []
    collection = collection_of(material / "Dataset001")

    def predict(image):
        asked.append(1)
        return image().volume.with_data(label_map_of(1).T[None])

    cases = [replace(case, prediction=predict, is_made=True) for case in collection.cases]
    session = Session(replace(collection, cases=cases))
    assert session.listing()["cases"][0]["is_made"]
    first = session.label_facts(0)
    session.label_facts(1)
    assert session.label_facts(0) == first
    assert len(asked) == 2
    assert session.listing()["cases"][0]["dice"] == first["dice"]
    assert not session.listing()["cases"][0]["is_made"]
