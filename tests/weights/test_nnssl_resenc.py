"""Weights of ResEnc U-Nets from nnssl and nnU-Net."""

import functools
import json
import re

import pytest
import torch
from golden_files import golden_file, kept, load_golden, needs

import misfm.models
from misfm import weights
from misfm.errors import WeightsError
from misfm.inference.load import load_predictor
from misfm.weights.nnssl_resenc import reference_names

MAE, S3D, VF = (
    golden_file(f"ckpt_nnssl_{name}.pth") for name in ("resencl_mae", "resencl_s3d", "resenc_vf_raw")
)
needs_golden = needs(MAE, S3D, VF)

CUBE = (2, 2, 2)
OPTIONS = {
    "channels": [4, 6, 6, 8],
    "blocks": [1, 2, 1, 1],
    "strides": [[1, 2, 2], [2, 2, 2], [1, 1, 1]],  # the last level changes its width without a step
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "convs_per_level": 2,
}


def network(seed=0, num_classes=3, patch_size=(16, 32, 32), **changes):
    torch.manual_seed(seed)
    arguments = {"deep_supervision": True, **OPTIONS, **changes}
    model = misfm.models.create("resenc", num_classes=num_classes, patch_size=patch_size, **arguments)
    for parameter in model.parameters():  # all different from each other, norms and biases included
        torch.nn.init.normal_(parameter)
    return model


def published(seed=0, **changes):
    """A state dict with all names of nnU-Net."""
    return reference_names(network(seed, **changes).state_dict())


@functools.cache
def checkpoint(path):
    """What a file holds, read once: without compiled code torch takes a second for a thousand names."""
    return weights.source.unpickle(path)


def encoder_only(state):
    heads = {"projector.layer1.0.weight": torch.zeros(8, 8), "rotation_proj_head.bias": torch.zeros(4)}
    return {name: tensor for name, tensor in state.items() if name.startswith("encoder.")} | heads


def supervised(state, **arguments):
    """A checkpoint as nnU-Net lays it out."""
    configuration = {
        "patch_size": [16, 32, 32],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": {
                "features_per_stage": (4, 6, 6, 8),
                "n_blocks_per_stage": (1, 2, 1, 1),
                "strides": [[1, 1, 1], *OPTIONS["strides"]],
                "kernel_sizes": OPTIONS["kernel_sizes"],
                "n_conv_per_stage_decoder": [2, 2, 2],
            },
        },
    }
    labels = {"background": 0, "right kidney": 2, "liver": 1, "ignore": 3}
    given = {"configuration": "3d_fullres", "dataset_json": {"labels": labels}, **arguments}
    return {
        "network_weights": state,
        "current_epoch": 4,
        "init_args": {"plans": {"configurations": {"3d_fullres": configuration}}, **given},
        "trainer_name": "nnUNetTrainer",
    }


def same(model, other, prefix=""):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(prefix))


def test_published_outputs_are_reproduced_and_written_back():
    tensors = load_golden(golden_file("resenc.safetensors"))
    state = {
        name.removeprefix("state_dict."): tensor for name, tensor in tensors.items() if "state_dict." in name
    }
    options = weights.describe(state)["network"]["options"]
    model = network(patch_size=(64, 64, 32), **options)
    report = weights.load(model, state)
    assert report.adapted == report.reinitialised == report.unused == []
    with torch.no_grad():
        for level, output in enumerate(model.eval()(tensors["input"])):
            expected = tensors[f"output.{level}"]
            assert (kept(output, expected) - expected).abs().max() / expected.abs().max() < 1e-5
    written = reference_names(model.state_dict())
    assert len(written) == 956
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


@needs_golden
@pytest.mark.parametrize(("path", "channels"), [(MAE, 1), (MAE, 3), (S3D, 1)])
def test_encoders_of_openmind_give_the_features_that_nnunet_gets(path, channels):
    expected = load_golden(path.with_suffix(".expected.safetensors"))
    model = weights.from_pretrained(checkpoint(path), in_channels=channels, num_classes=4)
    encoder = model.backbone.encoder.eval()
    assert torch.equal(encoder.stem.conv.weight, expected[f"in{channels}.stem_weight"])
    with torch.no_grad():
        features = encoder(expected[f"in{channels}.input"])
    for level in range(1, 6):
        skip = expected[f"in{channels}.skip.{level}"]
        # The deepest level normalises over four voxels: there the reference itself is 5e-5 from float64, and
        # another number of threads, which adds up in another order, up to 4e-5 from the reference.
        tolerance = 1e-4 if level == 5 else 1e-5
        assert (features[level] - skip).abs().max() / skip.abs().max() < tolerance


@needs_golden
def test_sparse_training_is_read_from_what_runs_for_any_number_of_channels():
    state = checkpoint(S3D)["network_weights"]
    trained, left = (state[f"encoder.stem.convs.0.{name}.weight"] for name in ("all_modules.0", "conv"))
    assert not torch.equal(trained, left)
    model = weights.from_pretrained(checkpoint(S3D), in_channels=2)
    torch.testing.assert_close(model.backbone.encoder.stem.conv.weight[:, :1], trained / 2)
    text = str(weights.load(model, checkpoint(S3D)))
    assert "114 layers are stored twice with different values" in text
    assert "stored twice" not in str(weights.load(model, checkpoint(MAE)))


@needs_golden
@pytest.mark.parametrize(
    ("path", "pretext", "trainer", "steps"),
    [
        (MAE, "mae", "BaseMAETrainer_BS8", None),
        (S3D, "s3d", "SparkMAETrainer_BS8", None),
        (VF, "openmind-vf", "VolumeFusionTrainer_BS8", 500),
    ],
)
def test_openmind_files_describe_themselves(path, pretext, trainer, steps):
    description = weights.describe(path)
    metadata = json.loads(path.with_suffix(".json").read_text())
    config = metadata.get("config") or metadata["real_widths_replaced_by"]
    assert description["network"]["name"] == "resenc"
    assert description["network"]["options"]["channels"] == config["features_per_stage"]
    assert description["network"]["options"]["blocks"] == config["n_blocks_per_stage"]
    assert description["network"]["options"]["strides"] == [[2, 2, 2]] * 5
    assert (description["in_channels"], description["num_classes"]) == (1, config["num_classes"])
    assert (description["pretext"], description["recipe"], description["steps"]) == (pretext, trainer, steps)
    assert description["spacing"] == [1, 1, 1]
    assert description["patch_size"] == [32, 32, 32]
    assert description["intensity"] == {"kind": "mr"}
    assert description["num_values"] == metadata.get("n_parameters", description["num_values"])


@needs_golden
def test_a_pretext_head_is_never_taken_and_the_decoder_is():
    report = weights.load(weights.from_pretrained(VF, num_classes=5), checkpoint(VF))
    assert {entry.name.split(".")[0] for entry in report.reinitialised} == {"head"}
    assert {entry.name.split(".")[0] for entry in report.unused} == {"head"}
    assert any(entry.name.startswith("backbone.decoder.") for entry in report.loaded)
    options = weights.describe(checkpoint(VF))["network"]["options"]
    report = weights.load(network(**options), checkpoint(VF), transfer="encoder")
    assert {entry.name.split(".")[1] for entry in report.loaded} == {"encoder"}


@needs_golden
def test_where_plan_and_tensors_disagree_the_tensors_win_and_it_is_said():
    text = str(weights.load(weights.from_pretrained(checkpoint(MAE)), checkpoint(MAE)))
    assert "plan says channels [32, 64, 128, 256, 320, 320] and its tensors [4, 6, 8, 10, 12, 12]" in text
    assert weights.describe(checkpoint(VF))["notes"] == []


def test_every_name_of_a_tensor_is_written_and_none_is_needed_twice():
    model = network()
    state = reference_names(model.state_dict())
    stem = state["encoder.stem.convs.0.conv.weight"]
    for name in ("encoder.stem.convs.0.all_modules.0", "decoder.encoder.stem.convs.0.all_modules.0"):
        assert state[f"{name}.weight"].data_ptr() == stem.data_ptr()
    # a pool comes first in the shortcut where there is a step, and nowhere else
    assert "encoder.stages.1.blocks.0.skip.1.conv.weight" in state
    assert "encoder.stages.3.blocks.0.skip.0.conv.weight" in state
    assert not any(name.startswith("encoder.stages.2.blocks.0.skip") for name in state)
    for unneeded in (r"\.all_modules\.", r"\.(conv|norm)\.", r"^decoder\.encoder\.", r"^encoder\."):
        fewer = {name: tensor for name, tensor in state.items() if not re.search(unneeded, name)}
        other = network(seed=1)
        assert weights.load(other, fewer).reinitialised == []
        assert same(other, model)


def test_a_model_without_deep_supervision_is_written_with_silent_outputs():
    model = network(deep_supervision=False)
    state = reference_names(model.state_dict())
    assert torch.equal(state["decoder.seg_layers.2.weight"], model.head.levels[0].weight)
    assert state["decoder.seg_layers.0.weight"].shape == (3, 6, 1, 1, 1)
    assert not state["decoder.seg_layers.0.weight"].any()
    assert state.keys() == published().keys()
    headless = reference_names(model.backbone.state_dict(prefix="backbone."))
    assert not any("seg_layers" in name for name in headless)


def test_a_mapping_tells_its_topology_from_shapes():
    description = weights.describe(published())
    assert description["network"] == {"name": "resenc", "options": OPTIONS}
    assert (description["in_channels"], description["num_classes"]) == (1, 3)
    assert same(weights.from_pretrained(published(), patch_size=(16, 32, 32)), network(), "backbone.")


def test_preset_l_is_told_and_needs_no_options():
    with torch.device("meta"):
        model = misfm.models.create("resenc-l", num_classes=2, patch_size=(64, 64, 64))
    shapes = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}
    assert weights.describe(reference_names(shapes))["network"] == {"name": "resenc-l", "options": {}}


def test_a_checkpoint_of_nnunet_brings_its_labels_and_head(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save(supervised(published()), path)
    description = weights.describe(path)
    assert description["label_names"] == ["background", "liver", "right kidney"]
    assert (description["pretext"], description["recipe"]) == (None, "nnUNetTrainer")
    assert (description["spacing"], description["patch_size"]) == ([3, 1, 1], [16, 32, 32])
    assert (description["steps"], description["intensity"]) == (1000, {"kind": "mr"})
    assert description["notes"] == []
    model = weights.from_pretrained(path)
    assert same(model, network())


def test_a_checkpoint_of_nnunet_with_regions_has_regions_or_cannot_label(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    torch.save(
        supervised(published(), dataset_json={"labels": labels, "regions_class_order": [1, 2, 3]}), path
    )
    description = weights.describe(path)
    assert description["label_names"] == ["whole", "core", "enhancing"]
    assert description["label_values"] == [[1, 2, 3], [2, 3], [3]]
    assert (description["regions_class_order"], description["intensity"]) == ([1, 2, 3], {"kind": "mr"})
    torch.save(supervised(published(), dataset_json={"labels": labels}), path)
    description = weights.describe(path)
    assert (description["label_names"], description["intensity"]) == ([], {})


def test_an_encoder_alone_is_enough(tmp_path):
    state = encoder_only(published())
    model = network(seed=1)
    report = weights.load(model, state)
    assert same(model, network(), "backbone.encoder.")
    assert same(model, network(seed=1), "backbone.decoder.")
    assert [entry.name for entry in report.unused] == ["projector.layer1.0.weight", "rotation_proj_head.bias"]
    assert "an encoder without a decoder" in str(report)
    # nothing but the plan tells the steps then; without one, pooled shortcuts count as halving all axes
    assert weights.describe(state)["network"]["options"]["strides"] == [[2, 2, 2], [2, 2, 2], [1, 1, 1]]
    planned = weights.describe(supervised(state))["network"]["options"]["strides"]
    assert planned == OPTIONS["strides"]


def test_an_encoder_alone_is_judged_by_what_it_fits_of_the_encoder():
    model = network(seed=1, convs_per_level=80)
    report = weights.load(model, encoder_only(published()))
    assert report.pretrained_parameters < 0.1 * report.num_parameters
    assert same(model, network(), "backbone.encoder.")


@pytest.mark.parametrize("num_levels", [3, 5])
def test_levels_match_from_the_finest_whatever_the_depth(num_levels):
    changes = {
        "channels": [4, 6, 6, 8, 8][:num_levels],
        "blocks": [1, 2, 1, 1, 1][:num_levels],
        "strides": [*OPTIONS["strides"], CUBE][: num_levels - 1],
        "kernel_sizes": [*OPTIONS["kernel_sizes"], (3, 3, 3)][:num_levels],
    }
    model = network(seed=1, **changes)
    report = weights.load(model, published())
    for part in ("encoder.levels", "decoder.ups", "decoder.levels"):
        for level in range(min(num_levels, 4) - (part != "encoder.levels")):
            assert same(model, network(), f"backbone.{part}.{level}.")
    fresh, left = (
        {".".join(entry.name.split(".")[1:4]) for entry in entries if entry.name.startswith("backbone.")}
        for entries in (report.reinitialised, report.unused)
    )
    deepest = max(num_levels, 4) - 1
    only_there = {f"encoder.levels.{deepest}"} | {
        f"decoder.{part}.{deepest - 1}" for part in ("ups", "levels")
    }
    assert (fresh, left) == ((only_there, set()) if num_levels > 4 else (set(), only_there))


def test_kernels_collapse_for_flat_levels():
    isotropic = {"kernel_sizes": [(3, 3, 3)] * 4, "strides": [CUBE, CUBE, CUBE]}
    model = network(seed=1)  # flat kernels and a flat step in its finest level
    report = weights.load(model, published(**isotropic))
    source = network(**isotropic)
    adapted = {entry.name: entry.how for entry in report.adapted}
    assert adapted["backbone.encoder.stem.conv.weight"] == "kernel averaged to 1x3x3"
    assert adapted["backbone.decoder.ups.0.weight"] == "kernel averaged to 1x2x2"
    torch.testing.assert_close(
        model.backbone.encoder.stem.conv.weight,
        source.backbone.encoder.stem.conv.weight.mean(2, keepdim=True),
    )
    assert same(model, source, "backbone.encoder.levels.1.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.stages.0.blocks.0.conv1.squeeze_excitation.fc1.weight": (1,)}, "squeeze and excitation"),
        ({"encoder.stages.0.blocks.0.conv1.all_modules.1.running_mean": (4,)}, "with batch norm"),
        ({"encoder.stem.convs.0.all_modules.0.weight": (4, 1, 3, 3)}, "2D kernels"),
        ({"encoder.stem.convs.0.all_modules.0.weight": (8, 1, 1, 3, 3)}, "stem of another width"),
        ({"decoder.stages.0.convs.2.all_modules.0.weight": (6, 6, 3, 3, 3)}, "levels of different depth"),
    ],
)
def test_relatives_of_the_network_are_refused_by_what_they_have(change, message):
    state = published() | {name: torch.zeros(shape) for name, shape in change.items()}
    with pytest.raises(WeightsError, match=message):
        weights.describe(state)


def test_incomplete_weights_and_a_stride_in_the_first_level_are_refused():
    state = published()
    checkpoint = supervised(state)
    configuration = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"]["strides"] = [2, 2, 2, 1]
    with pytest.raises(WeightsError, match="stride in their first level"):
        weights.describe(checkpoint)
    for name in [name for name in state if "stages.1.blocks.0.conv1" in name and "encoder" in name]:
        del state[name]
    with pytest.raises(WeightsError, match=r"lack 'encoder\.stages\.1\.blocks\.0\.conv1\."):
        weights.describe(state)


def test_weights_of_transposed_axes_are_described_and_not_loaded(tmp_path):
    checkpoint = supervised(published())
    checkpoint["init_args"]["plans"]["transpose_forward"] = [2, 0, 1]
    torch.save(checkpoint, tmp_path / "turned.pth")
    assert weights.describe(tmp_path / "turned.pth")["transposed"] is True
    with pytest.raises(WeightsError, match=r"turned\.pth was trained with transposed axes"):
        weights.from_pretrained(tmp_path / "turned.pth")


def test_weights_that_do_not_say_how_scans_are_prepared_cannot_label(tmp_path):
    checkpoint = supervised(published())
    configuration = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = ["CTNormalization"]
    torch.save(checkpoint, tmp_path / "ct.pth")
    with pytest.raises(WeightsError, match=r"ct\.pth does not say how scans are prepared"):
        load_predictor(tmp_path / "ct.pth")


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualUNet"])
def test_other_networks_of_nnunet_are_refused_by_name(tmp_path, name):
    path = tmp_path / "checkpoint_final.pth"
    checkpoint = supervised({"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(4, 1, 3, 3, 3)})
    if name == "ResidualUNet":
        checkpoint = supervised(published() | {"decoder.stages.0.blocks.0.conv1.conv.weight": torch.zeros(1)})
    architecture = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = f"dynamic_network_architectures.architectures.unet.{name}"
    torch.save(checkpoint, path)
    with pytest.raises(WeightsError, match=f"of the network {name}, which misfm does not read"):
        weights.describe(path)


def test_weights_for_another_network_say_whose_they_are():
    unet = misfm.models.create("unet", num_classes=3, patch_size=(16, 32, 32))
    with pytest.raises(WeightsError, match=r"network 'resenc'.* fit 0% of this UNet"):
        weights.load(unet, published())
