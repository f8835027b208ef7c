"""Labelling with several weights, and with mirrors: who may label together, and along which axes."""

import json
import logging

import numpy as np
import pytest
import torch

import misfm
from misfm.data.readers import read_volume
from misfm.errors import ConfigError, WeightsError
from misfm.inference.load import load_predictor, prediction_info
from misfm.inference.members import check_compatible, members_of
from misfm.models import create
from misfm.volume import Volume
from misfm.weights import NetworkInfo, WeightsInfo, open_source, save

OPTIONS = {"channels": (4, 8)}
PATCH = (16, 16, 16)


@pytest.fixture
def weights(tmp_path):
    """Write random weights, with other fields where asked for; the seed is the name."""

    def write(seed, **fields):
        torch.manual_seed(seed)
        info = {
            "network": NetworkInfo(name="unet", options=OPTIONS),
            "in_channels": 1,
            "num_classes": 3,
            "label_names": ("background", "heart", "lung"),
            "patch_size": PATCH,
            "spacing": (2.0, 2.0, 2.0),
            "intensity": {"kind": "ct"},
            "steps": 0,
            "data": None,
            **fields,
        }
        model = create(
            "unet",
            in_channels=info["in_channels"],
            num_classes=info["num_classes"],
            patch_size=PATCH,
            **OPTIONS,
        )
        path = tmp_path / f"{seed}.safetensors"
        save(path, model, WeightsInfo(**info))
        return path

    return write


def noise(shape=(20, 18, 22)):
    voxels = np.random.default_rng(0).integers(-800, 900, (1, *shape)).astype(np.int16)
    return Volume(voxels, np.diag([-2.5, 2.5, 2.5, 1.0]))


def test_two_copies_label_like_one(weights):
    one = weights(0)
    alone, together = misfm.predict(one, noise()), misfm.predict([one, str(one)], noise())
    assert len(np.unique(alone.data)) > 1
    assert np.mean(alone.data == together.data) > 0.999  # rounding may move a tie


def test_the_mean_of_probabilities_decides(weights):
    upright = np.array([[0, 0, -2.0, 0], [0, -2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
    scan = Volume(noise(PATCH).data, upright)  # one window, with spacing and axes of the weights
    paths = [weights(seed) for seed in range(3)]
    predictors = [load_predictor(path) for path in paths]
    windows = torch.from_numpy(np.clip(scan.data[None] / 1000, -1, 1).astype(np.float32))
    with torch.no_grad():
        mean = sum(predictor.network(windows).softmax(1) for predictor in predictors) / 3
    together, alone = misfm.predict(paths, scan).data[0], misfm.predict(paths[0], scan).data[0]
    assert np.mean(together == mean[0].argmax(0).numpy()) > 0.999  # rounding may move a tie
    assert np.mean(together == alone) < 0.9


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"spacing": (3.0, 2.0, 2.0)}, r"spacing \(\(3\.0, 2\.0, 2\.0\) and \(2\.0, 2\.0, 2\.0\)\)"),
        ({"patch_size": (16, 16, 8)}, "patch"),
        ({"intensity": {"kind": "mr"}}, "intensity rule"),
        ({"label_names": ("background", "lung", "heart")}, "label names"),
        ({"num_classes": 4, "label_names": ("background", "heart", "lung", "liver")}, "number of classes"),
    ],
)
def test_strangers_do_not_label_together(weights, other, words):
    with pytest.raises(ConfigError, match=rf"1\.safetensors and .*0\.safetensors differ in their {words}"):
        load_predictor([weights(0), weights(1, **other)])


def test_channels_in_another_order_do_not_label_together(weights):
    def described(**fields):
        return prediction_info(open_source(weights(0, intensity=[{"kind": "mr"}, {"kind": "mr"}], **fields)))

    first, swapped = (described(in_channels=2, channel_names=names) for names in (("T1", "T2"), ("T2", "T1")))
    with pytest.raises(ConfigError, match=r"a and b differ in their channels or .* \(T2, T1 and T1, T2\)"):
        check_compatible("a", swapped, "b", first)
    check_compatible("a", first.model_copy(update={"channel_names": ("t1", "t2")}), "b", first)
    check_compatible("a", described(in_channels=2), "b", first)  # unknown ones


def test_a_folder_of_folds_is_all_of_them(weights, tmp_path):
    for number in (0, 1, 10, 2):
        folder = tmp_path / "cv" / f"fold_{number}"
        folder.mkdir(parents=True)
        weights(number).rename(folder / "weights.safetensors")
    folds = [tmp_path / "cv" / f"fold_{number}" for number in (0, 1, 2, 10)]
    assert members_of(tmp_path / "cv") == folds
    assert members_of(["builtin", str(tmp_path / "cv")]) == ["builtin", *folds]
    assert len(load_predictor(tmp_path / "cv").network.networks) == 4
    (folds[2] / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"fold_2 holds no weights\.safetensors yet: finish"):
        members_of(tmp_path / "cv")


def test_nothing_cannot_label():
    with pytest.raises(ConfigError, match="give at least one run folder"):
        members_of([])


def test_only_axes_mirrored_in_all_of_the_training_are_mirrored(weights, caplog):
    caplog.set_level(logging.INFO, "misfm")
    both, one, none = weights(0, mirror_axes=("H", "W")), weights(1, mirror_axes=("W",)), weights(2)
    assert load_predictor(both).mirror_axes == ()
    assert load_predictor(both, tta=True).mirror_axes == (1, 2)
    assert load_predictor([both, one], tta=True).mirror_axes == (2,)
    assert "--tta" not in caplog.text
    assert load_predictor([both, none], tta=True).mirror_axes == ()
    assert "--tta changes nothing: the weights name no axis that was mirrored in all of their" in caplog.text


def test_mirrors_change_something_unless_the_network_is_symmetric(weights):
    path = weights(0, mirror_axes=("W",))
    scan = Volume(noise().data[:, :, :, :12], np.diag([-2.0, 2.0, 2.0, 1.0]))
    plain, averaged = load_predictor(path), load_predictor(path, tta=True)
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    plain.network = averaged.network = network
    assert not np.array_equal(plain.predict(scan).data, averaged.predict(scan).data)
    with torch.no_grad():
        network.weight += network.weight.clone().flip(4)
    assert np.mean(plain.predict(scan).data == averaged.predict(scan).data) > 0.999


def test_a_fine_tuned_network_names_the_axes_it_was_mirrored_along(tmp_path, finetune_settings, finetuned):
    assert misfm.weights.describe(finetuned)["mirror_axes"] == []
    asked = finetune_settings("augmentation.flip_axes=[W]", "training.steps=1")
    misfm.finetune(asked, tmp_path / "run")
    assert misfm.weights.describe(tmp_path / "run")["mirror_axes"] == ["W"]


def test_the_command_takes_several_runs(run_command, tmp_path, finetuned, dataset):
    scan = dataset / "imagesTs"
    once = run_command("predict", "--run", finetuned, "--input", scan, "--output", tmp_path / "one")
    twice = run_command(
        *("predict", "--run", finetuned, "--run", finetuned, "--input", scan, "--output", tmp_path / "two"),
        *("--tta", "--json"),
    )
    assert (once.status, twice.status) == (0, 0)
    assert "--tta changes nothing" in twice.err
    for case, path in twice.result["written"].items():
        alone = read_volume(tmp_path / "one" / f"{case}.nii.gz")
        assert np.mean(read_volume(path).data == alone.data) > 0.999
    assert json.loads(twice.out.splitlines()[-1])["failed"] == {}
