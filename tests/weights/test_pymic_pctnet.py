"""Weights of MIS-FM as PyMIC saves them."""

import functools
import json
import os
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from golden_files import golden_file, kept, load_golden

import misfm.models
from misfm import weights
from misfm.errors import WeightsError

CHECKPOINT = golden_file("ckpt_pymic_pctnet_5class.pt")


def published_state():
    content = weights.source.unpickle(CHECKPOINT)
    return dict(content["model_state_dict"])


@functools.cache
def published_options():
    return weights.describe(CHECKPOINT)["network"]["options"]


def network(num_classes=5, patch_size=(16, 32, 32), **changes):
    options = {**published_options(), **changes}
    return misfm.models.create(
        "pctnet", num_classes=num_classes, patch_size=patch_size, deep_supervision=True, **options
    )


def test_a_checkpoint_tells_its_network_from_shapes():
    description = weights.describe(CHECKPOINT)
    config = json.loads(CHECKPOINT.with_suffix(".json").read_text())["config"]
    options = description["network"]["options"]
    assert options["channels"] == config["feature_chns"]
    assert options["depths"] == config["depths"]
    assert options["num_heads"] == config["num_heads"]
    assert options["window_sizes"] == config["window_sizes"]
    assert options["anisotropy"] == config["resolution_mode"]
    assert (description["in_channels"], description["num_classes"]) == (1, 5)
    assert description["steps"] == 200000


def test_names_behind_wrappers_are_the_same_names():
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in published_state().items()}
    description = weights.describe(wrapped)
    assert description["network"] == weights.describe(CHECKPOINT)["network"]


def test_a_checkpoint_reproduces_the_published_outputs():
    expected = load_golden(CHECKPOINT.with_suffix("").with_suffix(".expected.safetensors"))
    model = network()
    report = weights.load(model, CHECKPOINT)
    assert report.reinitialised == []
    single = weights.from_pretrained(CHECKPOINT, patch_size=(16, 32, 32))
    with torch.no_grad():
        for level, output in enumerate(model.eval()(expected["input"])):
            reference = expected[f"output.{level}"]
            assert (kept(output, reference) - reference).abs().max() / reference.abs().max() < 1e-5
        assert torch.equal(single.eval()(expected["input"]), model(expected["input"])[0])


def test_unused_lists_what_the_published_network_never_runs():
    unused = {entry.name for entry in weights.load(network(), CHECKPOINT).unused}
    assert len(unused) == 684 - len(network().state_dict())
    modules = ("embeddings.0.", "embeddings.2.", "pred_heads.0.", "pred_heads.2.")
    assert all(
        name.startswith(modules) or "norm_layer" in name or "position_index" in name for name in unused
    )


def test_other_classes_and_clipped_windows_start_fresh():
    report = weights.load(network(num_classes=2, patch_size=(8, 32, 32)), CHECKPOINT)
    fresh = [entry.name for entry in report.reinitialised]
    tables = [name for name in fresh if name.endswith("bias_table")]
    assert len(tables) == 6  # blocks 3 and 4 of the encoder and 3 of the decoder, two each
    assert all(name.startswith("head.") for name in fresh if name not in tables)
    assert 0.9 < report.pretrained_parameters / report.num_parameters < 1


def test_the_textbook_index_is_refused():
    with pytest.raises(WeightsError, match='create the network with position_index="mis-fm"'):
        weights.load(network(position_index="textbook"), CHECKPOINT)


def test_an_untrained_stem_is_left_out_and_said():
    state = published_state()
    for name, tensor in state.items():
        if name.startswith(("embeddings.0", "embeddings.2", "pred_heads.0", "pred_heads.2")):
            state[name] = torch.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor
    report = weights.load(network(anisotropy=0, patch_size=(16, 32, 32)), state)
    assert "trained with anisotropy 1" in str(report)
    fresh = {entry.name for entry in report.reinitialised}
    assert "backbone.encoder.project.weight" in fresh
    assert "backbone.decoder.conv0.2.weight" in fresh
    assert "backbone.encoder.block2.conv.2.weight" not in fresh


def test_another_network_and_incomplete_weights_are_refused():
    unet = misfm.models.create("unet", num_classes=5, patch_size=(16, 32, 32))
    with pytest.raises(WeightsError, match=r"network 'pctnet'.* fit 0% of this UNet"):
        weights.load(unet, CHECKPOINT)
    state = published_state()
    del state["embeddings.1.proj.weight"]
    with pytest.raises(WeightsError, match=r"lack 'embeddings\.1\.proj\.weight'"):
        weights.load(network(), state)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_is_wrong_with_a_checkpoint_is_one_sentence(tmp_path, zipped):
    path = tmp_path / "checkpoint.pt"
    content = {"model_state_dict": {"pyramid_ct.a": torch.zeros(9)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for cut in [False, True] * 100:
        damaged = bytearray(whole[: generator.integers(1, len(whole))] if cut else whole)
        damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            weights.describe(path)


class Payload:
    """Runs a command when unpickled without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_without_running(tmp_path, zipped):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"model_state_dict": {"pyramid_ct.a": torch.zeros(1)}, "iteration": Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="is refused"):
        weights.describe(path)
    assert not marker.exists()


def test_damaged_and_strange_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"model_state_dict": {"pyramid_ct.a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="not a whole torch checkpoint"):
        weights.describe(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.txt", "hello")
    with pytest.raises(WeightsError, match="not a whole torch checkpoint"):
        weights.describe(path)
    path.write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(WeightsError):
        weights.describe(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(WeightsError, match="holds a list"):
        weights.describe(path)
    torch.save({"network_weights": {}}, path)
    with pytest.raises(WeightsError, match=r"does not read \(it holds network_weights\)"):
        weights.describe(path)


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x00" * 10_000_000)
    with pytest.raises(WeightsError, match=r"bomb\.pth is refused: .* would unpack to 10,000,000"):
        weights.describe(path)
