"""Export: what other tools get is what the weights hold, and they can use it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import BESIDE, HERE

import misfm.models
from misfm import weights
from misfm.commands.export import export
from misfm.errors import ConfigError, DataError, WeightsError
from misfm.weights.nnssl_resenc import reference_names
from misfm.weights.nnunet_plans import KNOWN_PLANS, DatasetPlans, in_file_order, plan

RESENC = {"channels": (4, 6, 8), "blocks": (1, 2, 1), "strides": ((1, 2, 2), (2, 2, 2))}
NETWORKS = {
    "unet": {"channels": (4, 6, 8)},
    "pctnet": {"channels": (4, 4, 6, 8, 12), "num_heads": (2, 2, 3), "window_sizes": (3, 2, 2)},
    "fmunet": {"channels": (4, 5, 6, 7, 8), "depth": 1},
    "resenc": RESENC,
    "primus": {"embed_dim": 24, "depth": 2, "num_heads": 2, "token_order": "hwd"},
}
PATCH_SIZE = (16, 32, 32)


@pytest.fixture
def weights_of(tmp_path):
    """Write a weights file of a tiny network, all of its values random; returns the path and the network."""

    def write(name, *, in_channels=1, **description):
        torch.manual_seed(0)
        options = NETWORKS[name]
        model = misfm.models.create(
            name, in_channels=in_channels, num_classes=3, patch_size=PATCH_SIZE, **options
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        known = {"patch_size": PATCH_SIZE, "spacing": None, "steps": 7, "data": None, **description}
        info = weights.WeightsInfo(
            network=weights.NetworkInfo(name=name, options=model.backbone.options),
            in_channels=in_channels,
            num_classes=3,
            **known,
        )
        path = tmp_path / f"{name}.safetensors"
        weights.save(path, model, info)
        return path, model.eval()

    return write


def dataset_plans(folder, *, channels=("ZScoreNormalization",), spacing=(3.0, 1.0, 2.0), order=(0, 1, 2)):
    """Plans as nnU-Net makes them, as far as they matter: values are ordered by ``order``."""

    def planned(values):
        return [values[axis] for axis in order]

    content = {
        "dataset_name": "Dataset007_Liver",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": planned(spacing),
        "original_median_shape_after_transp": planned([40, 60, 50]),
        "image_reader_writer": "NibabelIO",
        "transpose_forward": list(order),
        "foreground_intensity_properties_per_channel": {str(c): {"mean": 1.0} for c in range(len(channels))},
        "configurations": {
            "2d": {},
            "3d_fullres": {
                "spacing": planned(spacing),
                "patch_size": planned([8, 40, 24]),
                "normalization_schemes": list(channels),
                "use_mask_for_norm": [True] * len(channels),
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 9,
            },
        },
    }
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    return folder


def exported_plans(folder):
    plans = json.loads((folder / "misfmPlans.json").read_text())
    return plans, plans["configurations"]["3d_fullres"]


# nnU-Net


def test_the_checkpoint_holds_all_names_with_the_values_of_the_weights(weights_of, tmp_path):
    path, model = weights_of("resenc")
    export(path, "nnunet", tmp_path / "out")
    checkpoint = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)
    state = checkpoint["network_weights"]
    expected = reference_names(model.state_dict())
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    for tree in ("encoder.", "decoder.encoder."):
        layer = f"{tree}stages.1.blocks.0.conv1"
        assert torch.equal(state[f"{layer}.conv.weight"], state[f"{layer}.all_modules.0.weight"])
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    assert (tmp_path / "out" / "checkpoint_final.pth").stat().st_size < 2 * path.stat().st_size  # stored once


def test_what_is_exported_can_be_loaded_back(weights_of, tmp_path):
    path, model = weights_of("resenc")
    export(path, "nnunet", tmp_path / "out")
    again = misfm.models.create("resenc", num_classes=3, patch_size=PATCH_SIZE, **RESENC)
    report = weights.load(again, tmp_path / "out" / "checkpoint_final.pth")
    assert not [entry for entry in report.reinitialised if entry.name.startswith("backbone.")]
    expected = model.backbone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.backbone.state_dict().items())


def test_plans_have_the_topology_and_the_preparation_of_the_weights(weights_of, tmp_path):
    path, _ = weights_of("resenc", spacing=(2.0, 0.5, 0.5), patch_size=(15, 33, 32))
    result = export(path, "nnunet", tmp_path / "out")
    plans, configuration = exported_plans(tmp_path / "out")
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["features_per_stage"] == [4, 6, 8]
    assert arguments["n_blocks_per_stage"] == [1, 2, 1]
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert configuration["patch_size"] == [16, 36, 32]  # nnU-Net pads no patches
    assert configuration["spacing"] == [2.0, 0.5, 0.5]
    assert (configuration["batch_size"], plans["transpose_forward"]) == (2, [0, 1, 2])
    assert all(Path(written).is_file() for written in result["written"])
    assert "export again with" in (tmp_path / "out" / "next_steps.txt").read_text()


def test_what_a_format_cannot_hold_of_the_clean_up_is_said(weights_of, tmp_path):
    names = ("background", "brainstem", "lungs")
    path, _ = weights_of("resenc", label_names=names, largest_part=(1,))
    said = "misfm predicts only the largest connected part of brainstem; what uses these files has to see to"
    assert any(note.startswith(said) for note in export(path, "nnunet", tmp_path / "out")["notes"])
    copied = export(path, "safetensors", tmp_path / "copy.safetensors")
    assert not any("largest" in note for note in copied["notes"])
    assert weights.describe(tmp_path / "copy.safetensors")["largest_part"] == [1]


def test_a_patch_of_one_voxel_at_the_coarsest_level_grows(weights_of, tmp_path):
    path, _ = weights_of("resenc")
    export(path, "nnunet", tmp_path / "out", patch_size=(2, 4, 4))
    assert exported_plans(tmp_path / "out")[1]["patch_size"] == [4, 8, 8]


def test_plans_of_the_dataset_fill_in_what_the_weights_do_not_say(weights_of, tmp_path):
    path, _ = weights_of("resenc", patch_size=None)
    folder = dataset_plans(tmp_path / "Dataset007_Liver", order=(2, 0, 1))
    export(path, "nnunet", tmp_path / "out", dataset=folder)
    plans, configuration = exported_plans(tmp_path / "out")
    assert (plans["dataset_name"], plans["image_reader_writer"]) == ("Dataset007_Liver", "NibabelIO")
    assert plans["original_median_shape_after_transp"] == [40, 60, 50]
    assert configuration["spacing"] == [3.0, 1.0, 2.0]
    assert configuration["patch_size"] == [8, 40, 24]
    assert configuration["use_mask_for_norm"] == [True]
    steps = (tmp_path / "out" / "next_steps.txt").read_text()
    assert "nnUNetv2_train 7 3d_fullres 0 -p misfmPlans -pretrained_weights checkpoint_final.pth" in steps
    assert 'cp misfmPlans.json "$nnUNet_preprocessed/Dataset007_Liver/"' in steps


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_transposed_axes_are_put_back(order):
    values = ["d", "h", "w"]
    assert in_file_order([values[axis] for axis in order], order) == values


def test_the_stem_takes_the_channels_of_the_dataset(weights_of, tmp_path):
    path, model = weights_of("resenc")
    folder = dataset_plans(tmp_path / "Dataset007_Liver", channels=("CTNormalization",) * 2)
    export(path, "nnunet", tmp_path / "out", dataset=folder)
    state = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    old = model.backbone.encoder.stem.conv.weight
    for name in ("conv.weight", "all_modules.0.weight"):
        for tree in ("encoder.", "decoder.encoder."):
            torch.testing.assert_close(state[f"{tree}stem.convs.0.{name}"], old.expand(-1, 2, -1, -1, -1) / 2)


def test_a_window_of_ct_is_planned_exactly(weights_of, tmp_path):
    path, _ = weights_of("resenc", intensity={"kind": "ct", "window": (-200.0, 600.0)})
    folder = dataset_plans(tmp_path / "D", channels=("CTNormalization", "ZScoreNormalization"))
    export(path, "nnunet", tmp_path / "out", dataset=folder)
    plans, configuration = exported_plans(tmp_path / "out")
    assert configuration["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    ct, other = plans["foreground_intensity_properties_per_channel"].values()
    hu = np.array([-1000.0, -200.0, 200.0, 600.0, 3000.0])
    normalised = (hu.clip(ct["percentile_00_5"], ct["percentile_99_5"]) - ct["mean"]) / ct["std"]
    assert normalised.tolist() == [-1, -1, 0, 1, 1]
    assert other == {"mean": 1.0}


def test_weights_of_mr_z_score_every_channel(weights_of, tmp_path):
    path, _ = weights_of("resenc", intensity={"kind": "mr"})
    folder = dataset_plans(tmp_path / "D", channels=("CTNormalization",))
    export(path, "nnunet", tmp_path / "out", dataset=folder)
    assert exported_plans(tmp_path / "out")[1]["normalization_schemes"] == ["ZScoreNormalization"]


def test_channels_of_different_kinds_are_planned_each_by_its_own(weights_of, tmp_path):
    rules = ({"kind": "ct", "window": (-200.0, 600.0)}, {"kind": "pet"}, {"kind": "nonorm"})
    path, _ = weights_of("resenc", in_channels=3, intensity=rules)
    done = export(path, "nnunet", tmp_path / "out")
    plans, configuration = exported_plans(tmp_path / "out")
    expected = ["CTNormalization", "ZScoreNormalization", "NoNormalization"]
    assert configuration["normalization_schemes"] == expected
    assert plans["foreground_intensity_properties_per_channel"]["0"]["percentile_00_5"] == -200
    assert any("PET was compressed" in note for note in done["notes"])
    folder = dataset_plans(tmp_path / "D", channels=("ZScoreNormalization", "CTNormalization"))
    export(path, "nnunet", tmp_path / "other", dataset=folder)  # other channels: as its own plans say
    schemes = exported_plans(tmp_path / "other")[1]["normalization_schemes"]
    assert schemes == ["ZScoreNormalization", "CTNormalization"]


@pytest.mark.parametrize("name", ["unet", "pctnet", "fmunet", "primus"])
def test_only_resenc_goes_to_nnunet(weights_of, tmp_path, run_command, name):
    path, _ = weights_of(name)
    done = run_command("export", path, "--to", "nnunet", "--out", tmp_path / "out")
    assert done.status == 1
    assert f"is '{name}', and nnU-Net takes weights of 'resenc' and 'resenc-l' alone" in done.error
    assert not (tmp_path / "out").exists()


def test_an_encoder_alone_gets_a_fresh_decoder_and_a_note(weights_of, tmp_path):
    _, model = weights_of("resenc")
    encoder = {
        name: tensor for name, tensor in reference_names(model.state_dict()).items() if name.startswith("enc")
    }
    torch.save({"network_weights": encoder}, tmp_path / "encoder.pth")
    result = export(tmp_path / "encoder.pth", "nnunet", tmp_path / "out", patch_size=PATCH_SIZE)
    assert any("tensors of the decoder are not in the source" in note for note in result["notes"])
    assert "tensors of the decoder" in (tmp_path / "out" / "next_steps.txt").read_text()
    state = torch.load(tmp_path / "out" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert state.keys() == reference_names(model.state_dict()).keys()


def test_a_folder_without_usable_plans_is_refused(weights_of, tmp_path, run_command):
    path, _ = weights_of("resenc")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_command("export", path, "--to", "nnunet", "--dataset", empty, "--out", tmp_path / "out")
    assert done.status == 1
    assert "holds no plans of nnU-Net" in done.error
    for content in ("{", "[]", '{"configurations": {"2d": {}}}'):
        (empty / "nnUNetPlans.json").write_text(content)
        with pytest.raises(DataError, match="no complete plan for 3d_fullres"):
            DatasetPlans.read(empty)


@pytest.mark.parametrize(
    "change",
    [
        {"original_median_shape_after_transp": [".nan", 60, 50]},
        {"original_median_shape_after_transp": [[40], 60, 50]},
        {"original_median_spacing_after_transp": "abc"},
        {"image_reader_writer": float("inf")},
        {"dataset_name": ["CT", "MR"]},
        {"dataset_name": "$(touch sprung)"},
        {"transpose_forward": [[0], 1, 2]},
        {"foreground_intensity_properties_per_channel": [1]},
        {"configurations": {"3d_fullres": {"spacing": [0, 1, 1]}}},
        {"configurations": {"3d_fullres": []}},
    ],
)
def test_plans_of_another_form_are_refused_in_a_sentence(tmp_path, change):
    folder = dataset_plans(tmp_path / "D")
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="no complete plan for 3d_fullres") as refused:
        DatasetPlans.read(folder)
    assert "\n" not in str(refused.value)


def test_equal_exports_have_equal_bytes(weights_of, tmp_path):
    path, _ = weights_of("resenc")
    for name in ("a", "b"):
        export(path, "nnunet", tmp_path / name)
    first, second = ((tmp_path / name / "checkpoint_final.pth").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("name", KNOWN_PLANS)
def test_plans_of_every_planner_will_do(tmp_path, name):
    folder = dataset_plans(tmp_path / "D")
    (folder / "nnUNetPlans.json").rename(folder / f"{name}.json")
    assert DatasetPlans.read(folder).name == "Dataset007_Liver"


@pytest.mark.parametrize("name", ["resenc", "resenc-l"])
def test_nnunet_builds_the_planned_network_and_loads_every_tensor(name):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; it comes with misfm[bench]")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    options = {**RESENC, "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "convs_per_level": 2}
    model = misfm.models.create(
        name, num_classes=3, patch_size=PATCH_SIZE, **(options if name == "resenc" else {})
    ).eval()
    info = weights.WeightsInfo(
        network=weights.NetworkInfo(name=name),
        in_channels=1,
        num_classes=3,
        patch_size=PATCH_SIZE,
        spacing=None,
        steps=None,
        data=None,
    )
    architecture = plan(model.backbone, info, PATCH_SIZE, None)["configurations"]["3d_fullres"][
        "architecture"
    ]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=False,
    ).eval()
    network.load_state_dict(reference_names(model.state_dict()), strict=True)
    x = torch.randn(1, 1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x), rtol=1e-4, atol=1e-4)


# ONNX


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_onnxruntime_computes_what_the_network_does(weights_of, tmp_path, name):
    pytest.importorskip("onnx", reason="onnx is not installed; it comes with misfm[export]")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see misfm[bench]")
    path, model = weights_of(name, in_channels=2)
    export(path, "onnx", tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch_size in (1, 3):
        x = torch.randn(batch_size, 2, *PATCH_SIZE, generator=torch.Generator().manual_seed(1))
        (logits,) = session.run(["logits"], {"image": x.numpy()})
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4 * float(np.abs(expected).max()))
    description = json.loads(session.get_modelmeta().custom_metadata_map["misfm"])
    assert description["network"]["name"] == name
    assert description["patch_size"] == list(PATCH_SIZE)


def test_onnx_says_what_is_missing(weights_of, tmp_path, run_command, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)  # as if it were not installed
    path, _ = weights_of("unet")
    done = run_command("export", path, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert done.status == 2
    assert "pip install onnx" in done.error
    assert not (tmp_path / "model.onnx").exists()


def test_a_network_without_a_head_has_no_output_to_export(weights_of, tmp_path):
    _, model = weights_of("resenc")
    names = {n: t for n, t in reference_names(model.state_dict()).items() if ".seg_layers." not in n}
    torch.save({"network_weights": names}, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match="fine-tune it first"):
        export(tmp_path / "backbone.pth", "onnx", tmp_path / "model.onnx")


# our own file


def test_a_run_becomes_one_file_that_predicts_the_same(finetuned, tmp_path, run_command):
    done = run_command(
        "export", finetuned, "--to", "safetensors", "--out", tmp_path / "w.safetensors", "--json"
    )
    assert done.status == 0
    assert done.result["written"] == [str(tmp_path / "w.safetensors")]
    before, after = (
        weights.from_pretrained(source).state_dict() for source in (finetuned, tmp_path / "w.safetensors")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert weights.describe(finetuned) == weights.describe(tmp_path / "w.safetensors")


@pytest.mark.parametrize("pretext", [None, "volume-fusion"])
def test_the_head_is_kept_whatever_it_was_trained_for(weights_of, tmp_path, pretext):
    path, model = weights_of("unet", pretext=pretext)
    export(path, "safetensors", tmp_path / "again.safetensors")
    again, info = weights.file.read(tmp_path / "again.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    assert info.pretext == pretext


def test_what_the_source_lacks_stays_out_of_the_file(weights_of, tmp_path):
    _, model = weights_of("resenc")
    names = {n: t for n, t in reference_names(model.state_dict()).items() if n.startswith("encoder.")}
    torch.save({"network_weights": names}, tmp_path / "encoder.pth")
    export(tmp_path / "encoder.pth", "safetensors", tmp_path / "w.safetensors")
    tensors, _ = weights.file.read(tmp_path / "w.safetensors")
    encoder = {name for name in model.state_dict() if name.startswith("backbone.encoder.")}
    assert tensors.keys() == encoder


@pytest.mark.parametrize(
    "name", ["resencl_mae", "resencl_s3d", "primusm_mae", "primusm_voco", "pymic_pctnet"]
)
def test_published_layouts_convert_and_load_the_same(tmp_path, name):
    found = [path for folder in (HERE, BESIDE) for path in sorted(folder.glob(f"ckpt_*{name}*.p*t*"))]
    if not found:
        pytest.skip("the reference checkpoints are not beside this repository")
    size = (32, 32, 32) if "primus" in name else None
    export(found[0], "safetensors", tmp_path / "w.safetensors")
    before = weights.from_pretrained(found[0], patch_size=size).backbone
    after = weights.from_pretrained(tmp_path / "w.safetensors", patch_size=size).backbone
    assert after.options == before.options
    report = weights.load(
        misfm.weights.from_pretrained(found[0], patch_size=size), tmp_path / "w.safetensors"
    )
    taken = {entry.name.removeprefix("backbone.") for entry in (*report.loaded, *report.adapted)}
    known = {n: t for n, t in before.state_dict().items() if n in taken}
    assert len(known) > 10
    assert all(torch.equal(after.state_dict()[n], t) for n, t in known.items())


# usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onxx"], "There is no export to 'onxx'; did you mean 'onnx'?"),
        (["--to", "onnx", "--dataset", "d"], "--dataset is for --to nnunet only"),
        (["--to", "safetensors", "--patch-size", "8,8,8"], "--patch-size is for --to nnunet and onnx"),
        (["--to", "onnx", "--patch-size", "8,8"], "--patch-size takes three positive numbers"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(run_command, tmp_path, arguments, message):
    done = run_command("export", "builtin", "--out", tmp_path / "out", *arguments)
    assert done.status == 2
    assert message in done.error


def test_weights_that_are_not_there(run_command, tmp_path):
    done = run_command("export", tmp_path / "none.pth", "--to", "safetensors", "--out", tmp_path / "out")
    assert done.status == 1
    assert "There is no weights file" in done.error


def test_a_mapping_must_say_which_network_it_is(weights_of, tmp_path):
    _, model = weights_of("unet")
    with pytest.raises(WeightsError, match="does not say which network"):
        export(model.state_dict(), "safetensors", tmp_path / "w.safetensors")
    with pytest.raises(ConfigError):
        export(model.state_dict(), "torch", tmp_path / "w.pt")


LABELLING = {
    "intensity": {"kind": "ct"},
    "label_names": ("background", "liver", "spleen"),
    "spacing": (2.0,) * 3,
}


@pytest.mark.parametrize(
    ("described", "labels"),
    [
        ({}, {"background": 0, "liver": 1, "spleen": 2}),
        ({"label_values": ((0,), (1,), (9,))}, {"background": 0, "liver": 1, "spleen": 2}),
        (
            {
                "label_names": ("whole", "core", "enhancing"),
                "label_values": ((1, 2, 4), (1, 4), (4,)),
                "regions_class_order": (2, 1, 4),
            },
            {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4},
        ),
    ],
    ids=["numbered", "gaps", "regions"],
)
def test_weights_that_label_are_a_model_from_which_nnunet_predicts(weights_of, tmp_path, described, labels):
    path, network = weights_of("resenc", in_channels=2, mirror_axes=("W",), **LABELLING | described)
    written = export(path, "nnunet", tmp_path / "out")["written"]
    assert {Path(file).relative_to(tmp_path / "out").as_posix() for file in written} == {
        *("fold_0/checkpoint_final.pth", "misfmPlans.json", "plans.json", "dataset.json", "next_steps.txt")
    }
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert dataset["labels"] == labels
    assert list(dataset["labels"]) == list(labels)  # nnU-Net paints in this order
    assert dataset.get("regions_class_order", []) == list(described.get("regions_class_order", ()))
    assert dataset["channel_names"] == {"0": "CT", "1": "CT"}
    content = torch.load(tmp_path / "out" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert (
        content["init_args"]["configuration"]
        in json.loads((tmp_path / "out" / "plans.json").read_text())["configurations"]
    )
    assert content["inference_allowed_mirroring_axes"] == (2,)
    head = content["network_weights"]["decoder.seg_layers.1.weight"]
    assert torch.equal(head, network.head.levels[0].weight)
    steps = (tmp_path / "out" / "next_steps.txt").read_text()
    assert "nnUNetv2_predict_from_modelfolder -i SCANS -o MASKS -m . -f 0" in steps
    assert "-pretrained_weights fold_0/checkpoint_final.pth" in steps
    assert ("9 becomes 2" in steps) == (
        "label_values" in described and "regions_class_order" not in described
    )
