import json
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.evaluate import evaluate
from misfm.data.dataset import check_grid
from misfm.data.scan import ScanSource
from misfm.data.writers import WRITERS, LabelledScan
from misfm.errors import DataError
from misfm.evaluation.case import LabelScores, check_same_grid, evaluate_case
from misfm.evaluation.evaluate import evaluate_folders
from misfm.files import checksum
from misfm.inference.predictions import CaseResult, CaseSource, Predictions
from misfm.volume import Volume

METRICS = {"dice", "hd95_mm", "assd_mm", "surface_dice"}


def volume(data: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> Volume:
    return Volume(data[None], np.diag([*spacing, 1.0]))


def blocks() -> np.ndarray:
    """Label 1 in one corner, label 2 in the other."""
    data = np.zeros((10, 12, 14), np.uint8)
    data[1:5, 1:5, 1:5] = 1
    data[6:9, 6:10, 6:12] = 2
    return data


def save(folder, name, data, *, affine=None):
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(data, affine), folder / f"{name}.nii.gz")


@pytest.fixture
def folders(tmp_path):
    """Two cases: the first predicted perfectly, the second without label 2."""
    references, predictions = tmp_path / "data" / "labelsTs", tmp_path / "predictions"
    for name in ("a", "b"):
        save(references, name, blocks())
    save(predictions, "a", blocks())
    save(predictions, "b", np.where(blocks() == 2, 0, blocks()).astype(np.uint8))
    return predictions, references


def test_a_case_scores_each_label():
    prediction = blocks()
    prediction[prediction == 2] = 0
    prediction[0, 0, 0] = 4
    scores = evaluate_case(volume(prediction), volume(blocks()), [1, 2, 3, 4])
    assert scores[1] == LabelScores(1.0, 0.0, 0.0, 1.0)
    assert scores[2] == scores[4] == LabelScores(0.0, None, None, 0.0)
    assert scores[3] is None


def test_the_default_tolerance_is_a_voxel_diagonal():
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[2, 2, 2] = 1
    diagonal, far = np.roll(reference, (1, 1, 1), (0, 1, 2)), np.roll(reference, 2, 0)
    spacing = (2.0, 0.7, 0.3)
    assert evaluate_case(volume(diagonal, spacing), volume(reference, spacing), [1])[1].surface_dice == 1
    assert evaluate_case(volume(far, spacing), volume(reference, spacing), [1])[1].surface_dice == 0
    result = evaluate_case(volume(far, spacing), volume(reference, spacing), [1], tolerance_mm=4.0)
    assert result[1].surface_dice == 1


def test_voxels_nobody_judged_do_not_count():
    reference, prediction = blocks(), blocks()
    reference[0:2] = 9
    prediction[0] = 2  # wrong, but only where the reference has no opinion
    scores = evaluate_case(volume(prediction), volume(reference), [1, 2], ignore=9)
    assert scores[1] == scores[2] == LabelScores(1.0, 0.0, 0.0, 1.0)
    assert evaluate_case(volume(prediction), volume(reference), [1, 2])[2].dice < 1


def test_folders_give_the_documented_result(folders):
    result = evaluate_folders(*folders)
    assert set(result["cases"]) == {"a", "b"}
    assert set(result["cases"]["a"]) == {"1", "2"}
    assert result["cases"]["a"]["1"] == {"dice": 1, "hd95_mm": 0, "assd_mm": 0, "surface_dice": 1}
    assert result["cases"]["b"]["2"] == {"dice": 0, "hd95_mm": None, "assd_mm": None, "surface_dice": 0}
    assert set(result["mean"]) == set(result["interval95"]) == set(result["counts"]) == {"1", "2", "all"}
    assert result["mean"]["2"] == {"dice": 0.5, "hd95_mm": 0, "assd_mm": 0, "surface_dice": 0.5}
    assert result["mean"]["all"]["dice"] == 0.75
    assert set(result["interval95"]["all"]) == METRICS
    assert result["interval95"]["2"]["dice"] == [0, 1]
    assert result["interval95"]["2"]["hd95_mm"] is None  # a single finite value has no interval
    assert result["counts"]["2"] == {"scored": 2, "absent_in_both": 0, "infinite_distances": 1}
    assert result["tolerance_mm"]["a"] == pytest.approx(np.sqrt(14))
    json.dumps(result, allow_nan=False)


def test_labels_go_by_name_where_a_dataset_tells_them(folders):
    predictions, references = folders
    declared = {"background": 0, "liver": 1, "spleen": 2, "lung": 5}
    (references.parent / "dataset.json").write_text(json.dumps({"labels": declared}))
    result = evaluate_folders(predictions, references)
    assert list(result["cases"]["a"]) == ["liver", "spleen", "lung"]
    assert result["cases"]["a"]["lung"] is None
    assert result["mean"]["lung"]["dice"] is None
    assert result["counts"]["lung"] == {"scored": 0, "absent_in_both": 2, "infinite_distances": 0}
    assert result["mean"]["all"]["dice"] == 0.75  # a label absent everywhere changes no mean

    (references.parent / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    with pytest.raises(DataError, match=r"label 2, which dataset\.json does not declare"):
        evaluate_folders(predictions, references)


def test_the_ignore_label_of_a_dataset_is_honoured(folders):
    predictions, references = folders
    (references.parent / "dataset.json").write_text(json.dumps({"labels": {"liver": 1, "ignore": 2}}))
    result = evaluate_folders(predictions, references)
    assert set(result["cases"]["b"]) == {"liver"}
    assert result["mean"]["all"]["dice"] == 1
    chosen = evaluate_folders(predictions, references, labels={"liver": 1})
    assert chosen["cases"] == result["cases"]


def test_labels_that_were_not_annotated_in_a_case_count_nowhere(folders):
    predictions, references = folders
    save(references, "b", (blocks() == 1).astype(np.uint8))
    save(predictions, "b", blocks())  # label 2 is right, for all we know
    content = {"labels": {"background": 0, "liver": 1, "spleen": 2}, "annotated_labels": {"b": ["liver"]}}
    (references.parent / "dataset.json").write_text(json.dumps(content))
    result = evaluate_folders(predictions, references)
    assert result["cases"]["b"]["spleen"] is None
    assert result["mean"]["spleen"]["dice"] == result["mean"]["all"]["dice"] == 1
    assert result["counts"]["spleen"] == {"scored": 1, "absent_in_both": 0, "infinite_distances": 0}

    chosen = evaluate_folders(predictions, references, labels={"milz": 2})
    assert chosen["cases"]["b"] == {"milz": None}

    save(references, "b", blocks())
    with pytest.raises(DataError, match=r"b.nii.gz holds the label 'spleen'.* annotated_labels of b"):
        evaluate_folders(predictions, references)


def test_cases_in_one_folder_only_are_listed(folders):
    predictions, references = folders
    save(predictions, "extra", blocks())
    (predictions / "b.nii.gz").unlink()
    result = evaluate_folders(predictions, references)
    assert list(result["cases"]) == ["a"]
    assert result["missing"] == {"predictions": ["b"], "references": ["extra"]}


def test_label_maps_that_predictions_json_does_not_list_are_warned_of(folders, caplog):
    assert evaluate_folders(*folders)["warnings"] == []
    crc32 = checksum((folders[0] / "a.nii.gz").read_bytes())
    listed = Predictions(folders[0], {"new": "1"}, {})
    listed.begin()
    listed.add("a", CaseResult(CaseSource("a", "a", ""), "a.nii.gz", {}, {}, crc32))
    listed.fail("b", "damaged")
    (warning,) = evaluate_folders(*folders)["warnings"]
    assert "does not list b.nii.gz, or says that the case failed" in warning
    assert caplog.messages == [warning]
    listed.add("b", CaseResult(CaseSource("b", "b", ""), "b.nii.gz", {}, {}, crc32))
    assert evaluate_folders(*folders)["warnings"] == []
    (folders[0] / "predictions.json").write_text("{")
    assert "cannot be read" in evaluate_folders(*folders)["warnings"][0]


def test_segments_in_layers_or_numbered_are_a_clear_sentence(folders):
    predictions, references = folders
    labels = {"both": (1, 2), "inner": (2,)}
    (predictions / "a.nii.gz").unlink()
    label_map = Volume(blocks()[None], np.diag([1.0, 2.0, 3.0, 1.0]))
    labelled = LabelledScan(label_map, labels, ScanSource(references / "a.nii.gz", "a"), {})
    WRITERS.get("nrrd")().write(predictions / "a.seg.nrrd", labelled)
    with pytest.raises(DataError, match=r"a\.seg\.nrrd holds segments that overlap, .*--format nifti"):
        evaluate_folders(predictions, references)
    with pytest.raises(DataError, match=r"a\.seg\.nrrd numbers its segments, .*--format nifti"):
        evaluate_folders(predictions, references, labels=labels)


def test_the_recipe_writes_the_result_and_reports_progress(folders, tmp_path):
    seen = []
    out = tmp_path / "new" / "scores.json"
    result = evaluate(*folders, out, tolerance_mm=2, progress=lambda done, total: seen.append((done, total)))
    assert json.loads(out.read_text()) == result
    assert result["tolerance_mm"] == {"a": 2, "b": 2}
    assert seen == [(1, 2), (2, 2)]
    assert [p.name for p in out.parent.iterdir()] == ["scores.json"]


def shifted():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = 0.5
    return affine


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, r: [f.unlink() for f in p.iterdir()], "holds no label maps"),
        (lambda p, r: [f.rename(f.with_name("x" + f.name)) for f in p.iterdir()], "No case is in both"),
        (lambda p, r: save(p, "a", blocks()[:-1]), "shape"),
        (lambda p, r: save(p, "a", blocks(), affine=shifted()), "another grid.* 0.5 mm apart"),
        (lambda p, r: save(p, "a", blocks() * 0.3), "no label map"),
        (lambda p, r: save(p, "a", blocks().astype(np.int16) - 1), "no label map"),
        (lambda p, r: (p / "a.nii.gz").write_bytes(b"junk"), "a.nii.gz"),
        (lambda p, r: save(p, "a", blocks()) or nib.save(nib.load(p / "a.nii.gz"), p / "a.nii"), "twice"),
        (lambda p, r: (r.parent / "dataset.json").write_text('{"labels": [1]}'), "must hold 'labels'"),
        (lambda p, r: (r.parent / "dataset.json").write_text('{"labels": {"all": 1, "b": 2}}'), "'all'"),
        (
            lambda p, r: (r.parent / "dataset.json").write_text('{"labels": {"a": 1, "b": 1}}'),
            "its own value",
        ),
        (lambda p, r: (r.parent / "dataset.json").write_text('{"labels": {"a": "1"}}'), "whole numbers"),
        (lambda p, r: (r.parent / "dataset.json").write_text('{"labels": {"air": 0}}'), "no label above 0"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(folders, tmp_path, spoil, message):
    predictions, references = folders
    spoil(predictions, references)
    with pytest.raises(DataError, match=message) as error:
        evaluate(predictions, references, tmp_path / "out.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.json").exists()


def test_missing_folders_and_unwritable_files(folders, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        evaluate_folders(tmp_path / "nowhere", folders[1])
    with pytest.raises(DataError, match="Cannot write"):
        evaluate(*folders, tmp_path)
    with pytest.raises(DataError, match="tolerance"):
        evaluate_folders(*folders, tolerance_mm=-1)


@pytest.mark.parametrize(("voxels", "same"), [(0.05, True), (0.2, False)])
def test_training_and_evaluation_agree_on_what_the_same_grid_is(voxels, same):
    """A label map 0.05 voxel off was once refused for training and taken for evaluation."""
    reference = Volume(np.ones((1, 4, 5, 6), np.uint8), np.eye(4))
    other = Volume(reference.data, np.eye(4))
    other.affine[1, 3] = voxels
    for check in (
        lambda: check_same_grid(other, reference),
        lambda: check_grid(Path("label.nii.gz"), other, Path("image.nii.gz"), reference),
    ):
        with nullcontext() if same else pytest.raises(DataError, match="lies on another grid"):
            check()


def test_regions_are_scored_as_the_union_of_their_values(folders):
    predictions, references = folders
    labels = {"background": 0, "both": [1, 2], "inner": 2}
    content = {"labels": labels, "regions_class_order": [1, 2], "annotated_labels": {"b": ["both"]}}
    (references / "dataset.json").write_text(json.dumps(content))
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[1:5, 1:5, 1:5], reference[2:4, 2:4, 2:4] = 1, 2
    swapped = np.where(reference == 1, 2, np.where(reference == 2, 1, 0)).astype(np.uint8)
    for folder in folders:
        for path in folder.glob("*.nii.gz"):
            path.unlink()
    for case in "ab":
        save(references, case, reference)
        save(predictions, case, swapped)
    result = evaluate_folders(predictions, references)
    assert result["cases"]["a"]["both"]["dice"] == 1
    assert result["cases"]["a"]["both"]["hd95_mm"] == 0
    assert result["cases"]["a"]["inner"]["dice"] == 0
    assert result["cases"]["b"]["inner"] is None  # not annotated
    chosen = evaluate_folders(predictions, references, labels={"mass": [1, 2]})
    assert chosen["mean"]["mass"]["dice"] == 1
