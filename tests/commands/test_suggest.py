"""Which scans to label first, and next: named with their sources and reasons; what is labelled never is."""

import pytest

from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings


@pytest.fixture(scope="module")
def images(dataset, tmp_path_factory):
    """The images of the dataset as a store: four that the run knows and two test cases, without labels."""
    folder = tmp_path_factory.mktemp("images") / "store"
    settings = IngestSettings(spacing=(14.0, 14.0, 14.0), intensity="ct:-200,600")
    ingest([dataset / "imagesTr", dataset / "imagesTs"], folder, settings)
    return folder


def test_first_come_scans_that_stand_for_the_others(run_command, store):
    done = run_command("suggest", "--store", store, "-n", 2, "--json")
    assert done.status == 0
    result = done.result
    assert (result["considered"], result["labelled"], result["by"]) == (4, 0, "features of builtin")
    first, second = result["suggested"]
    covered = [first["case"], second["case"], *first["stands_for"], *second["stands_for"]]
    assert len(set(covered)) == len(covered) == 4
    assert first["source"] in done.out
    assert "stands for" in first["why"]


def test_next_come_scans_that_the_run_is_least_sure_of(run_command, finetuned, images):
    result = run_command("suggest", "--store", images, "--run", finetuned, "-n", 1, "--json").result
    assert (result["considered"], result["labelled"]) == (2, 4)  # trained or validated on
    (suggested,) = result["suggested"]
    assert "_ts_" in suggested["case"]
    assert 0 <= suggested["quality"] <= 1
    assert "how sure the run is of it, place " in suggested["why"]  # it has one validation case: no Dice


def test_a_store_of_which_all_is_labelled_has_nothing_to_suggest(run_command, dataset, finetuned, tmp_path):
    settings = IngestSettings(spacing=(14.0, 14.0, 14.0), intensity="ct:-200,600")
    ingest([dataset / "imagesTr"], tmp_path / "store", settings)
    done = run_command("suggest", "--store", tmp_path / "store", "--run", finetuned)
    assert done.status == 1
    assert "holds nothing to label: 4 of its 4 scans are labelled" in done.error


def test_weights_that_were_only_pretrained_are_for_weights_and_not_for_run(run_command, store, pretrained):
    assert run_command("suggest", "--store", store, "-n", 1, "--weights", pretrained).status == 0
    done = run_command("suggest", "--store", store, "-n", 1, "--run", pretrained)
    assert done.status == 1
    assert "has no labels yet" in done.error
