"""Channels of different kinds, CT beside PET: from the dataset to weights, masks, ensembles and exports."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from misfm.commands.predict import predict
from misfm.data.ingest import ingest
from misfm.data.patches import UnlabelledPatches
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.pretext.base import PRETEXTS
from misfm.seeding import Draws
from misfm.testing.trial import NETWORKS, build, takes
from misfm.training.objectives import PretextObjective
from misfm.volume import Volume
from misfm.weights import describe

SIDE = 24


def ct_and_pet(seed):
    """A body in air with two balls, which take up ten times as much; the mask of the balls."""
    generator = np.random.default_rng(seed)
    grid = np.indices((SIDE,) * 3) - SIDE / 2
    body = (grid**2).sum(0) < (0.45 * SIDE) ** 2
    balls = np.zeros_like(body)
    for _ in range(2):
        centre = generator.uniform(-0.2, 0.2, (3, 1, 1, 1)) * SIDE
        balls |= ((grid - centre) ** 2).sum(0) < 9
    ct = np.where(body, 40, -1000) + generator.normal(0, 10, body.shape)
    pet = 4000.0 * (np.where(balls, 10, 1) * body + generator.gamma(1, 0.02, body.shape))
    return np.rint(ct).astype(np.int16), pet.astype(np.float32), balls.astype(np.uint8)


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3, 3, 1])), path)


def write_dataset(folder, names=("CT", "PET"), num_cases=3):
    for i in range(num_cases):
        ct, pet, label = ct_and_pet(i)
        for number, name in enumerate(names):
            save(folder / f"imagesTr/c{i}_{number:04d}.nii.gz", ct if name == "CT" else pet)
        save(folder / f"labelsTr/c{i}.nii.gz", label)
    content = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def pet_dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("pet") / "dataset")


@pytest.fixture(scope="module")
def run(pet_dataset, tmp_path_factory):
    """A run on CT and PET, of 40 steps: enough for the balls."""
    from misfm.commands.finetune import finetune
    from misfm.config import FinetuneSettings
    from misfm.resolve import resolve

    options = {"dataset": str(pet_dataset), "patch_size": (16, 16, 16), "batch_size": 2, "weights": "none"}
    options |= {"training.steps": 40, "network.name": "unet", "network.options.channels": [8, 16]}
    out = tmp_path_factory.mktemp("run") / "run"
    finetune(resolve(FinetuneSettings, recipe="small", options=options), out)
    return out


def case(seed, scale=1.0):
    ct, pet, _ = ct_and_pet(seed)
    affine = np.diag([3.0, 3, 3, 1])
    return Volume(np.stack([ct, pet * np.float32(scale)]).astype(np.float32), affine)


def test_each_channel_is_prepared_by_its_own_rule(run):
    record = Store.open(run / "cases").records()[0]
    ct, pet = record.normalisation
    assert (ct.lower, ct.upper, ct.unit) == (-1000, 1000, None)
    assert pet.unit == pytest.approx(4000, rel=0.1)
    assert record.channel_kinds == ("ct", "pet")


def test_weights_say_what_each_channel_is(run):
    found = describe(run / "weights.safetensors")
    assert [rule["kind"] for rule in found["intensity"]] == ["ct", "pet"]
    assert found["channel_names"] == ["CT", "PET"]
    assert found["format_version"] == 2


def test_masks_do_not_depend_on_the_unit_of_the_pet(run):
    expected = predict(str(run), case(9))
    assert expected.data.any(), "an empty mask has no unit"
    again = predict(str(run), case(9, scale=1e-3))
    assert (again.data == expected.data).mean() > 0.999


def test_files_are_labelled_as_volumes_are(run, tmp_path, run_command):
    ct, pet, _ = ct_and_pet(9)
    save(tmp_path / "in/p_0000.nii.gz", ct)
    save(tmp_path / "in/p_0001.nii.gz", pet)
    done = run_command("predict", "--run", run, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert done.status == 0
    volume = read_volume(tmp_path / "in/p_0000.nii.gz")
    both = np.stack([volume.data[0], read_volume(tmp_path / "in/p_0001.nii.gz").data[0]])
    expected = predict(str(run), volume.with_data(both))
    assert np.array_equal(read_volume(tmp_path / "out/p.nii.gz").data, expected.data)


def test_runs_of_other_rules_do_not_label_together(run, pet_dataset, tmp_path, run_command, tiny_finetuning):
    other = ["--dataset", pet_dataset, "--out", tmp_path / "run", *tiny_finetuning]
    done = run_command("finetune", *other, "--set", "intensity=ct:-200,600/mr", "--set", "weights=none")
    assert done.status == 0, done.err
    scans = [pet_dataset / "imagesTr", "--output", tmp_path / "out"]
    done = run_command("predict", "--run", run, "--run", tmp_path / "run", "--input", *scans)
    assert done.status == 2
    assert "intensity rules (ct:-200,600/mr and ct/pet)" in done.error


def test_as_many_rules_as_channels(pet_dataset, tmp_path, run_command, tiny_finetuning):
    command = ["finetune", "--dataset", pet_dataset, "--out", tmp_path / "run", *tiny_finetuning]
    done = run_command(*command, "--set", "intensity=ct/pet/pet", "--set", "weights=none")
    assert done.status == 2
    assert "'ct/pet/pet' has 3 rules and the images have 2 channel(s)" in done.error
    assert not (tmp_path / "run").exists()


def test_channels_of_a_dataset_become_scans_of_their_own_kind(pet_dataset, tmp_path, run_command):
    shutil.copytree(pet_dataset, tmp_path / "d")
    assert run_command("ingest", tmp_path / "d", "--store", tmp_path / "store").status == 0
    kinds = {record.case: record.kind for record in Store.open(tmp_path / "store").records()}
    assert (kinds["c0_0000"], kinds["c0_0001"]) == ("ct", "pet")


@pytest.fixture(scope="module")
def pretrained_on_both(pet_dataset, tmp_path_factory):
    """Weights of a pretraining of two steps on CT and PET as one volume."""
    return pretrained_on(pet_dataset, folder=tmp_path_factory.mktemp("pretrained"))


def pretrained_on(*scans, folder, task="volume-fusion-v2"):
    from misfm.commands.pretrain import pretrain
    from misfm.config import PretrainSettings
    from misfm.resolve import resolve

    settings = IngestSettings(spacing=(3, 3, 3), channels="together")
    ingest(scans, folder / "store", settings)
    options = {"store": str(folder / "store"), "patch_size": (16, 16, 16), "batch_size": 2}
    options |= {"training.steps": 2, "validation_batches": 1, "pretext.name": task, "network.name": "unet"}
    options |= {"network.options.channels": [4, 8]}
    pretrain(resolve(PretrainSettings, recipe="small", options=options), folder / "run")
    return folder / "run" / "weights.safetensors"


def test_pretraining_on_channels_together_takes_all_and_says_what_they_are(pretrained_on_both):
    found = describe(pretrained_on_both)
    assert found["in_channels"] == 2
    assert [rule["kind"] for rule in found["intensity"]] == ["ct", "pet"]
    assert found["channel_names"] == ["CT", "PET"]
    assert len(found["data"]["scans"]) == 2 * found["data"]["count"]


def start_of(dataset, weights, out, run_command, tiny_finetuning):
    """The report of a fine-tuning that starts from weights."""
    command = ["finetune", "--dataset", dataset, "--out", out, *tiny_finetuning, "--weights", weights]
    done = run_command(*command, "--set", "training.steps=1", "--set", "select=false")
    assert done.status == 0, done.err
    return (out / "transfer.txt").read_text(), json.dumps(describe(out / "weights.safetensors"))


def test_fine_tuning_on_the_same_channels_takes_them_whole(
    pretrained_on_both, pet_dataset, tmp_path, run_command, tiny_finetuning
):
    report, _ = start_of(pet_dataset, pretrained_on_both, tmp_path / "run", run_command, tiny_finetuning)
    assert "image channels" not in report
    assert "reinitialised 4 tensors: head.levels (4)" in report


def test_channels_in_another_order_are_put_into_it(pretrained_on_both, tmp_path):
    from misfm.commands.start import open_weights, start_from
    from misfm.models import create

    models = []
    for names in (("CT", "PET"), ("PET", "ct"), ("PET", "MR")):
        model = create("unet", in_channels=2, num_classes=2, patch_size=(16, 16, 16), channels=(4, 8))
        opened = open_weights(str(pretrained_on_both))
        _, notes = start_from(model, str(pretrained_on_both), opened, "all", names)
        models.append((model.state_dict()["backbone.encoder.stem.weight"], " ".join(notes)))
    (same, quiet), (turned, told), (unknown, warned) = models
    assert np.array_equal(turned.numpy(), same.numpy()[:, ::-1])
    assert np.array_equal(unknown.numpy(), same.numpy())
    assert "put into that order" not in quiet
    assert "they were put into that order" in told
    assert "channels are taken in their order" in warned


def test_one_channel_of_two_is_adapted_as_any(pretrained_on_both, tmp_path, run_command, tiny_finetuning):
    alone = write_dataset(tmp_path / "ct", names=("CT",))
    report, description = start_of(alone, pretrained_on_both, tmp_path / "run", run_command, tiny_finetuning)
    assert "from 2 to 1 image channels" in report
    assert json.loads(description)["intensity"] == {"kind": "ct", "window": None}


def test_a_scan_seen_as_a_channel_is_known_again(
    pretrained_on_both, pet_dataset, tmp_path, run_command, tiny_finetuning
):
    command = ["finetune", "--dataset", pet_dataset, "--out", tmp_path / "run", *tiny_finetuning]
    done = run_command(*command, "--weights", pretrained_on_both, "--set", "training.steps=1")
    assert "have seen the scans of 2 of 2 training cases" in done.err


def test_volumes_of_different_channels_are_not_pretrained_on_together(pet_dataset, tmp_path):
    other = write_dataset(tmp_path / "other", names=("PET", "CT"))
    with pytest.raises(ConfigError, match=r"c0: CT, PET \(CT and PET\)"):
        pretrained_on(pet_dataset, other, folder=tmp_path / "runs")


def test_unlabelled_scans_of_several_channels_are_learnt_from(
    pretrained_on_both, pet_dataset, tmp_path, run_command, tiny_finetuning
):
    store = pretrained_on_both.parent.parent / "store"
    command = ["finetune", "--dataset", pet_dataset, "--out", tmp_path / "run", *tiny_finetuning]
    options = ["--weights", "none", "--set", "spacing=[3,3,3]", "--set", "allow_overlap=true"]
    done = run_command(*command, *options, "--unlabelled", store)
    assert done.status == 0, done.err


@pytest.mark.parametrize("name", PRETEXTS.names())
def test_every_task_that_takes_scans_learns_from_several_channels(pretrained_on_both, name):
    task = PRETEXTS.get(name)()
    if task.needs_labels or task.mixes_generated:
        pytest.skip("learns from generated anatomy, which has one channel")
    store = Store.open(pretrained_on_both.parent.parent / "store")
    network, options, size = next(each for each in NETWORKS if takes(task, *each))
    objective = PretextObjective(task, size)
    patches = UnlabelledPatches(store, store.records(), task.source_size(size), task.num_patches, 2, seed=0)
    batch = objective.prepare(patches[0], Draws(("channels",)))
    assert batch.inputs.shape[1] == 2
    model = task.build_model(build(network, options, size))
    loss = sum(objective.loss(model(batch.inputs, *batch.context), batch).values())
    loss.backward()
    stem = model.backbone.get_parameter(model.backbone.stem_weight).grad
    assert (stem.abs().sum(dim=(0, 2, 3, 4)) > 0).all(), "both channels are learnt from"
