"""Pretraining without scans: generated anatomy as a store, and its label maps as a pretext."""

import json
import shutil

import pytest
import torch

from misfm.commands.pretrain import PatchSource, pretrain
from misfm.commands.trials import Trial, pretrain_settings
from misfm.config import CompareSettings
from misfm.data.generated import generate, open_store, write_phantom_dataset
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.planning.volumes import split_records
from misfm.synthesis import structures
from misfm.synthesis.generate import PhantomSettings
from misfm.weights import describe

SMALL = PhantomSettings(shape=(20, 24, 28), spacing=(15, 13, 11))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A run folder whose generated store of two scans lies beside it."""
    run = tmp_path_factory.mktemp("generated") / "run"
    open_store("phantom:2", run)
    return run


@pytest.fixture
def tiny(tiny_pretraining):
    from misfm.config import PretrainSettings
    from misfm.resolve import resolve

    def build(store, name):
        shared = [line for line in tiny_pretraining[1::2] if not line.startswith("pretext")]
        options = {"store": store, "pretext": {"name": name}}
        return resolve(PretrainSettings, recipe="small", options=options, assignments=shared)

    return build


def test_generated_scans_come_with_label_maps_and_are_generated_once(generated):
    (folder,) = generated.parent.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "sqlite" not in path.name}
    store = open_store("phantom:2", generated)
    assert sorted(path.name for path in folder.iterdir()) == ["phantoms.json", "store"]
    assert len(store.records()) == 2
    seen = set.union(*(set(store.label_anchors(record)) for record in store.records()))
    assert seen >= {
        structures.LIVER,
        structures.SPINAL_CORD,
        structures.FAT,
        structures.BRAIN,
        structures.JAW,
    }
    assert before == {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if "sqlite" not in path.name
    }


@pytest.mark.parametrize("name", ["phantom-anatomy", "misfm"])
def test_any_task_pretrains_on_generated_scans(generated, tiny, name):
    out = generated.with_name(f"{generated.name}")
    run = out.parent / name
    (out.parent / f"{name}-phantoms").symlink_to(out.parent / f"{out.name}-phantoms")
    scores = pretrain(tiny("phantom:2", name), run)
    assert scores["validation_loss"] > 0
    assert describe(str(run))["pretext"] == name


def test_scans_have_no_label_maps(store, tiny, tmp_path):
    with pytest.raises(ConfigError, match="give --store phantom"):
        pretrain(tiny(str(store), "phantom-anatomy"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none_is_refused(tmp_path):
    for text in ("phantom:1", "phantom:many"):
        with pytest.raises(ConfigError, match="number from 2 to 100000"):
            open_store(text, tmp_path / "run")


def test_a_comparison_generates_what_the_task_needs(store, dataset):
    settings = CompareSettings(store=str(store), dataset=str(dataset), recipes=("phantom-anatomy", "misfm"))
    assert pretrain_settings(settings, Trial("unet", "phantom-anatomy")).store == "phantom"
    assert pretrain_settings(settings, Trial("unet", "misfm")).store == str(store)


def test_a_folder_called_phantom_is_a_store_like_any_other(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phantom").symlink_to(store)
    assert isinstance(open_store("phantom", tmp_path / "run"), Store)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]


def test_generated_scans_of_other_intensities_are_not_taken(generated):
    with pytest.raises(ConfigError, match="use the same settings or another folder"):
        generate(2, generated, IngestSettings(spacing="native", intensity="ct"))


def test_scans_of_another_version_of_the_generator_are_not_taken(generated, tmp_path):
    folder = tmp_path / "run-phantoms"
    shutil.copytree(next(generated.parent.iterdir()), folder)
    assert len(open_store("phantom:2", tmp_path / "run").records()) == 2
    made_with = folder / "phantoms.json"
    look = json.loads(made_with.read_text())
    for other in (json.dumps(look | {"structures": 5}), None):
        made_with.unlink() if other is None else made_with.write_text(other)
        with pytest.raises(ConfigError, match="another version of misfm: delete it"):
            open_store("phantom:2", tmp_path / "run")
    shutil.rmtree(folder / "store")
    made_with.write_text(json.dumps(look | {"structures": 5}))
    open_store("phantom:2", tmp_path / "run")
    assert json.loads(made_with.read_text()) == look


def test_a_killed_generation_goes_on_with_as_many_of_each_region(generated, tmp_path):
    """What it left, cut short or more than is asked for, is made anew; an odd one is a head."""
    folder = tmp_path / "run-phantoms"
    shutil.copytree(next(generated.parent.glob("run-phantoms")), folder)
    write_phantom_dataset(folder / "dataset", num_train=9, num_test=0, seed=0, settings=SMALL)
    (folder / "dataset" / "labelsTr" / "phantom_tr_008.nii.gz").unlink()
    store = open_store("phantom:3", tmp_path / "run")
    assert sorted(record.case for record in store.records()) == [
        "head_neck_tr_000",
        "head_neck_tr_001",
        "phantom_tr_000",
    ]
    assert not (folder / "dataset").exists()


def test_halves_of_a_batch_from_one_store_are_other_patches(generated, tiny):
    store, settings = open_store("phantom:2", generated), tiny("phantom:2", "misfm")
    training, _ = split_records(store.records(), settings)
    source = PatchSource(settings.pretext.build(), settings, store, generated=store)
    patches = source.batches(training, seed=0)[0][0]
    assert not torch.equal(patches[0], patches[1])
