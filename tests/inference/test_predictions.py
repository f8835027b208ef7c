"""predictions.json: whose label map is whose, and what is not done again."""

import json

import pytest

from misfm.errors import ConfigError, DataError
from misfm.files import checksum
from misfm.inference.predictions import CaseResult, CaseSource, Predictions

SOURCE = CaseSource("/scans/a.nii.gz", "/scans/a.nii.gz", "1 files")


def opened(folder, sha256="1", **made_with):
    predictions = Predictions(folder, {"runs/liver": sha256}, made_with)
    predictions.begin()
    return predictions


def add(predictions, folder, case="a"):
    (folder / f"{case}.nii.gz").write_bytes(b"mask")
    result = CaseResult(SOURCE, f"{case}.nii.gz", {"liver": 1}, {"liver": 2.5}, checksum(b"mask"), ["note"])
    predictions.add(case, result)


def content(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_the_file_says_what_was_found_and_by_what(tmp_path):
    predictions = opened(tmp_path)
    add(predictions, tmp_path)
    predictions.fail("b", "b.nii.gz is damaged.")
    found = content(tmp_path)
    assert found["weights"] == [{"source": "runs/liver", "sha256": "1"}]
    assert found["cases"]["a"] == {
        "source": "/scans/a.nii.gz",
        "path": "/scans/a.nii.gz",
        "stamp": "1 files",
        "mask": "a.nii.gz",
        "labels": {"liver": 1},
        "volume_ml": {"liver": 2.5},
        "crc32": checksum(b"mask"),
        "warnings": ["note"],
    }
    assert found["failed"] == {"b": "b.nii.gz is damaged."}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_done_is_found_again_if_nothing_changed(tmp_path):
    add(opened(tmp_path), tmp_path)
    assert opened(tmp_path).finished("a", SOURCE)["warnings"] == ["note"]
    assert opened(tmp_path).finished("b", SOURCE) is None
    other = CaseSource(SOURCE.source, SOURCE.path, "another time")
    assert opened(tmp_path).finished("a", other) is None
    (tmp_path / "a.nii.gz").unlink()
    assert opened(tmp_path).finished("a", SOURCE) is None


@pytest.mark.parametrize("changes", [{"sha256": "2"}, {"overlap": 0.25}])
def test_label_maps_of_other_weights_or_options_are_never_taken_for_new_ones(tmp_path, changes):
    add(opened(tmp_path), tmp_path)
    again = opened(tmp_path, **changes)
    assert again.finished("a", SOURCE) is None
    assert content(tmp_path)["cases"] == {}
    assert again.check_mask("a", "a.nii.gz", SOURCE) == []


def test_a_label_map_that_somebody_corrected_is_not_overwritten(tmp_path):
    add(opened(tmp_path), tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"corrected")
    for again in (opened(tmp_path), opened(tmp_path, "2")):
        assert again.finished("a", SOURCE) is None
        with pytest.raises(DataError, match=r"a\.nii\.gz was changed after misfm wrote it"):
            again.check_mask("a", "a.nii.gz", SOURCE)
        add(opened(tmp_path), tmp_path)
        (tmp_path / "a.nii.gz").write_bytes(b"corrected")


@pytest.mark.parametrize("second", ["1", "2"])
def test_a_corrected_label_map_is_known_after_its_case_failed_and_other_weights_came(tmp_path, second):
    add(opened(tmp_path), tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"corrected")
    opened(tmp_path, second).fail("a", "was changed")
    for sha256 in ("1", second, "3"):
        with pytest.raises(DataError, match=r"a\.nii\.gz was changed after misfm wrote it"):
            opened(tmp_path, sha256).check_mask("a", "a.nii.gz", SOURCE)


def test_a_stop_between_a_label_map_and_its_note_is_no_change(tmp_path):
    predictions = opened(tmp_path)
    add(predictions, tmp_path)
    predictions.writing("a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(b"newer")
    assert opened(tmp_path).check_mask("a", "a.nii.gz", SOURCE) == []


def test_a_label_map_takes_no_part_as_a_scan_once_other_weights_came(tmp_path):
    add(opened(tmp_path), tmp_path)
    assert opened(tmp_path, "2").masks() == {tmp_path.resolve() / "a.nii.gz"}


def test_a_label_map_that_takes_the_place_of_another_scans_is_told(tmp_path):
    add(opened(tmp_path), tmp_path)
    other = CaseSource("/other/a.nii.gz", "/other/a.nii.gz", "1 files")
    assert opened(tmp_path).check_mask("a", "a.nii.gz", other) == [
        "a.nii.gz was the label map of /scans/a.nii.gz before and is that of /other/a.nii.gz now."
    ]


def test_a_case_that_fails_is_listed_as_done_no_longer(tmp_path):
    predictions = opened(tmp_path)
    add(predictions, tmp_path)
    predictions.fail("a", "damaged")
    assert content(tmp_path)["cases"] == {}


def test_two_commands_with_the_same_weights_share_a_folder(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    add(first, tmp_path, "a")
    add(second, tmp_path, "b")
    assert sorted(content(tmp_path)["cases"]) == ["a", "b"]
    opened(tmp_path, "2")
    with pytest.raises(ConfigError, match="was changed by another command"):
        add(first, tmp_path, "c")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"cases": 1}', '{"cases": {"a": 2}}'])
def test_a_damaged_file_is_a_sentence_for_what_it_knew_of_corrected_masks_is_lost(tmp_path, text):
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(DataError, match=r"predictions\.json is damaged .*; delete it, and the label maps"):
        opened(tmp_path)


def test_a_changed_number_is_noticed(tmp_path):
    add(opened(tmp_path), tmp_path)
    file = tmp_path / "predictions.json"
    file.write_text(file.read_text().replace("2.5", "2.6"))
    with pytest.raises(DataError, match="not as misfm wrote it"):
        opened(tmp_path)
