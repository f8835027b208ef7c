"""Fine-tuning: which cases, which settings from weights or dataset, and twins that differ in weights only."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from misfm.commands.finetune import build_model, finetune
from misfm.commands.pretrain import pretrain
from misfm.commands.start import open_weights
from misfm.commands.twins import finetune_twins
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.intensity import Normalisation
from misfm.data.record import Record
from misfm.errors import ConfigError, DataError, WeightsError
from misfm.planning.fill_defaults import fill_defaults
from misfm.planning.splits import choose_cases
from misfm.planning.volumes import split_records
from misfm.training.run import RunFolder
from misfm.training.settings import TrainingSettings

NAMES = [f"phantom_tr_{number:03d}" for number in range(4)]


def names_of(cases):
    return [case.name for case in cases]


def chosen(dataset, settings):
    training, held_out = choose_cases(Dataset.open(dataset), settings)
    return names_of(training), names_of(held_out)


def test_without_a_split_a_fifth_is_held_out_whatever_the_seed(dataset, finetune_settings):
    training, held_out = chosen(dataset, finetune_settings())
    assert sorted(training + held_out) == NAMES
    assert len(held_out) == 1
    assert chosen(dataset, finetune_settings("seed=7")) == (training, held_out)


def test_fewer_cases_are_part_of_more(dataset, finetune_settings):
    by_count = [set(chosen(dataset, finetune_settings(f"cases={count}"))[0]) for count in (1, 2, 3)]
    assert [len(names) for names in by_count] == [1, 2, 3]
    assert by_count[0] < by_count[1] < by_count[2]
    held_out = {chosen(dataset, finetune_settings(f"cases={count}"))[1][0] for count in (1, 2, 3)}
    assert len(held_out) == 1


def test_named_cases_are_never_held_out(dataset, finetune_settings):
    _, (held_out,) = chosen(dataset, finetune_settings())
    assert chosen(dataset, finetune_settings(f"cases=[{held_out}]")) == ([held_out], [])


def test_more_classes_than_a_label_map_holds_are_refused(dataset, finetune_settings, tmp_path):
    crowded = tmp_path / "crowded"
    shutil.copytree(dataset, crowded)
    content = json.loads((crowded / "dataset.json").read_text())
    content["labels"] |= {f"more {value}": value for value in range(len(content["labels"]), 300)}
    (crowded / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="names 300 labels, and a network can tell 256 apart"):
        finetune(finetune_settings(f"dataset={crowded}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def split_file(tmp_path):
    folds = [{"train": NAMES[:2], "val": NAMES[2:]}, {"train": NAMES[2:], "val": NAMES[:1]}]
    (tmp_path / "split.json").write_text(json.dumps(folds))
    return tmp_path / "split.json"


def test_a_split_file_decides(dataset, finetune_settings, split_file):
    assert chosen(dataset, finetune_settings(f"split={split_file}")) == (NAMES[:2], NAMES[2:])
    assert chosen(dataset, finetune_settings(f"split={split_file}", "fold=1")) == (NAMES[2:], NAMES[:1])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("cases=9", "--cases 9: the split has 3 training cases"),
        ("cases=0", "--cases 0: the split has 3 training cases"),
        ("cases=[phantom_tr_01]", "has no labelled case 'phantom_tr_01'; did you mean 'phantom_tr_0"),
        ("split=nowhere.json", "nowhere.json is not a split; expected"),
    ],
)
def test_cases_that_do_not_exist_are_refused(dataset, finetune_settings, assignment, message):
    with pytest.raises(ConfigError) as error:
        chosen(dataset, finetune_settings(assignment))
    assert message in str(error.value)


def test_a_fold_that_does_not_exist_is_refused(dataset, finetune_settings, split_file):
    with pytest.raises(ConfigError, match="There is no fold 2: the split has 2"):
        chosen(dataset, finetune_settings(f"split={split_file}", "fold=2"))


@pytest.mark.parametrize("content", ["{}", "[1]", "words", '[{"train": ["a"]}]'])
def test_a_file_that_is_no_split_is_refused(dataset, finetune_settings, tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ConfigError, match="is not a split; expected"):
        chosen(dataset, finetune_settings(f"split={tmp_path / 'split.json'}"))


def filled(dataset, settings):
    opened = Dataset.open(dataset)
    return fill_defaults(
        settings,
        DatasetFingerprint(opened),
        len(choose_cases(opened, settings)[0]),
        open_weights(settings.weights),
    ).settings


def bare(dataset, **others):
    return FinetuneSettings(recipe="none", training=TrainingSettings(steps=1), dataset=str(dataset), **others)


def test_open_settings_come_from_the_weights(dataset, pretrained):
    found = filled(dataset, bare(dataset, weights=str(pretrained)))
    assert found.network.name == "unet"
    assert found.network.options == {"channels": [4, 8], "strides": [[2, 2, 2]]}
    assert (found.spacing, found.intensity) == ((14, 14, 14), "ct:-200,600")


def test_without_weights_they_come_from_the_dataset(dataset):
    found = filled(dataset, bare(dataset))
    assert (found.network.name, found.intensity) == ("unet", "ct")
    assert found.spacing == pytest.approx((14, 13, 12), rel=0.16)


def test_what_is_given_stays(dataset, pretrained):
    given = {"network": {"name": "pctnet"}, "spacing": (9, 8, 7), "intensity": "mr"}
    found = filled(dataset, bare(dataset, weights=str(pretrained), **given))
    assert (found.network.name, found.spacing, found.intensity) == ("pctnet", (9, 8, 7), "mr")
    assert filled(dataset, bare(dataset, spacing="native")).spacing == "native"
    assert filled(dataset, bare(dataset, intensity="auto")).intensity == "ct"


def test_rare_classes_weigh_more_in_the_loss_of_the_small_recipe(finetune_settings, tmp_path):
    assert finetune_settings().class_balance == 0.5
    losses = []
    for balance in (0.0, 0.5):
        run = RunFolder(tmp_path / str(balance))
        finetune(finetune_settings(f"class_balance={balance}", "training.steps=1"), run.path)
        losses.append(run.read_metrics()[0])
    assert losses[0]["dice_loss"] == losses[1]["dice_loss"]
    assert losses[0]["cross_entropy"] != losses[1]["cross_entropy"]


def test_sides_are_not_mirrored_where_labels_tell_them_apart(dataset, tmp_path):
    assert filled(dataset, bare(dataset)).augmentation.flip_axes == ()
    asked = bare(dataset, augmentation={"flip_axes": ["D"]})
    assert filled(dataset, asked).augmentation.flip_axes == ("D",)
    shutil.copytree(dataset, tmp_path / "one")
    description = json.loads((tmp_path / "one" / "dataset.json").read_text())
    labels = description["labels"]
    description["labels"] = {
        name.replace("left_", "one_").replace("right_", "other_"): labels[name] for name in labels
    }
    (tmp_path / "one" / "dataset.json").write_text(json.dumps(description))
    assert filled(tmp_path / "one", bare(tmp_path / "one")).augmentation.flip_axes == ("W",)


def test_settled_settings_settle_to_themselves(dataset, pretrained):
    once = filled(dataset, bare(dataset, weights=str(pretrained)))
    again = FinetuneSettings.model_validate(once.model_dump(mode="json"))
    assert filled(dataset, again) == once


def test_the_seed_decides_the_first_weights_and_nothing_else_does(dataset, finetune_settings):
    opened = Dataset.open(dataset)
    models = [build_model(filled(dataset, finetune_settings(f"seed={seed}")), opened) for seed in (0, 0, 1)]
    kernels = [model.state_dict()["backbone.encoder.stem.weight"] for model in models]
    assert torch.equal(kernels[0], kernels[1])
    assert not torch.equal(kernels[0], kernels[2])


def test_transfer_of_the_encoder_leaves_the_decoder_fresh(tmp_path, dataset, pretrained, finetune_settings):
    frozen = ("training.optimizer.lr=1e-30", "training.optimizer.weight_decay=0", f"weights={pretrained}")
    source = load_file(pretrained / "weights.safetensors")
    fresh = build_model(filled(dataset, finetune_settings()), Dataset.open(dataset)).state_dict()
    for transfer in ("all", "encoder"):
        finetune(finetune_settings(*frozen, f"transfer={transfer}", "training.steps=1"), tmp_path / transfer)
        found = load_file(tmp_path / transfer / "weights.safetensors")
        for name in found.keys() & source.keys():
            moved = "encoder" in name or (transfer == "all" and "decoder" in name)
            expected = source[name] if moved else fresh[name]
            assert torch.allclose(found[name], expected, rtol=0, atol=1e-20), name


def test_twins_differ_in_nothing_but_their_first_weights(tmp_path, pretrained, finetune_settings):
    settings = finetune_settings(f"weights={pretrained}", "training.steps=2")
    result = finetune_twins(settings, tmp_path / "twins")
    assert result["curves"].keys() == {"pretrained", "scratch"}
    assert result["verdict"].startswith("Mean Dice ")
    # The scratch twin is exactly a run from scratch with these settings.
    alike = finetune_settings("training.steps=2", "spacing=[14, 14, 14]", "intensity='ct:-200,600'")
    finetune(alike, tmp_path / "alone")
    twin, alone = (load_file(tmp_path / run / "weights.safetensors") for run in ("twins/twin", "alone"))
    assert all(torch.equal(twin[name], alone[name]) for name in twin)


def test_a_twin_needs_weights_to_compare_with(tmp_path, finetune_settings):
    with pytest.raises(ConfigError, match="--twin compares pretrained weights with scratch: give --weights"):
        finetune_twins(finetune_settings("weights=none"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"with scratch \(weights none: builtin have other channels"):
        finetune_twins(finetune_settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_refused_before_anything_is_written(
    tmp_path, pretrained, finetune_settings
):
    settings = finetune_settings(f"weights={pretrained}", "network={name: pctnet, options: {}}")
    with pytest.raises(
        WeightsError, match=r"weights of network 'unet'.*create the network they were trained"
    ):
        finetune(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_network_is_refused_before_anything_is_written(tmp_path, finetune_settings):
    with pytest.raises(ConfigError, match="did you mean 'unet'"):
        finetune(finetune_settings("network={name: unett, options: {}}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_held_out_cases_trains_all_the_same(tmp_path, finetune_settings):
    scores = finetune(finetune_settings(f"cases=[{','.join(NAMES)}]", "training.steps=1"), tmp_path / "run")
    assert scores["cases"] == {}
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_volumes_smaller_than_the_patch_are_padded_and_that_is_said(
    tmp_path, finetune_settings, pretrain_settings, caplog
):
    large = ("patch_size=[40, 40, 40]", "training.steps=1", "batch_size=1")
    finetune(finetune_settings(*large), tmp_path / "finetune")
    assert "3 of 3 volumes are smaller than the (40, 40, 40) voxels read for a patch, such as" in caplog.text
    caplog.clear()
    pretrain(pretrain_settings(*large), tmp_path / "pretrain")
    assert "4 of 4 volumes are smaller than the (60, 60, 60) voxels read for a patch, such as" in caplog.text


def volume(number, fingerprint, labels=None):
    """What a store says of a volume."""
    return Record(
        id=str(number),
        case=str(number),
        source=f"{number}.nii.gz",
        channels=1,
        shape=(8, 8, 8),
        spacing=(1.0, 1.0, 1.0),
        rows=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        kind="ct",
        normalisation=(Normalisation(lower=-1000.0, upper=1000.0, shift=0.0, scale=1.0),),
        lowest=(-1000.0,),
        labels=labels,
        fingerprint=fingerprint,
    )


def test_pretraining_holds_out_at_least_one_volume():
    settings = PretrainSettings(recipe="none", store="s", training=TrainingSettings(steps=1))
    volumes = [volume(i, str(i)) for i in range(40)]
    training, held_out = split_records(volumes, settings)
    assert len(held_out) == 2
    assert sorted(int(volume.fingerprint) for volume in [*training, *held_out]) == list(range(40))
    assert [[*part] for part in split_records(volumes, settings)] == [[*training], [*held_out]]
    assert len(split_records(volumes[:2], settings)[1]) == 1
    with pytest.raises(DataError, match=r"holds 1 volume\(s\); pretraining needs at least two"):
        split_records(volumes[:1], settings)


def test_volumes_made_of_one_scan_stay_on_one_side():
    settings = PretrainSettings(recipe="none", store="s", training=TrainingSettings(steps=1))
    volumes = [volume(i, str(i // 3)) for i in range(60)]
    training, held_out = split_records(volumes, settings)
    assert {volume.fingerprint for volume in training}.isdisjoint(volume.fingerprint for volume in held_out)
    assert len(training) == 57
    with pytest.raises(DataError, match="were made of one scan"):
        split_records([volumes[0], volumes[1]], settings)


def test_people_and_generated_anatomy_are_on_both_sides():
    settings = PretrainSettings(recipe="none", store="s", training=TrainingSettings(steps=1))
    people = [volume(f"p{i}", f"p{i // 3}", (46, 50)) for i in range(12)]
    others = [volume(i, str(i), (0, 1)) for i in range(200)]
    training, held_out = split_records([*others, *people], settings)
    for part, number in ((training, 9), (held_out, 3)):
        assert len([volume for volume in part if volume.labels[1] == 50]) == number
    assert len(held_out) == 13


def test_a_scan_with_many_labels_is_no_label_map_of_people():
    settings = PretrainSettings(recipe="none", store="s", training=TrainingSettings(steps=1))
    volumes = [volume(i, str(i), (0, 104 if i == 3 else 4)) for i in range(40)]
    assert len(split_records(volumes, settings)[1]) == 2  # one of them alone would be refused


def test_scores_of_a_run_are_those_of_its_predictions(tmp_path, finetuned, dataset):
    """What validation.json says is what predicting and evaluating the held-out case gives."""
    from misfm.commands.predict import predict
    from misfm.evaluation.case import evaluate_case

    scores = json.loads((finetuned / "validation.json").read_text())
    ((name, by_label),) = scores["cases"].items()
    opened = Dataset.open(dataset)
    (case,) = [case for case in opened.cases() if case.name == name]
    image, reference = opened.read_case(case)
    found = evaluate_case(predict(str(finetuned), image), reference, [1])
    assert by_label["liver"]["dice"] == pytest.approx(found[1].dice)
    assert not np.isnan(found[1].dice)
