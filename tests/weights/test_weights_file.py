"""Our weights file describes itself, is written whole or not at all, and is refused when it is not ours."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from misfm.errors import DataError, WeightsError
from misfm.models import create
from misfm.seeding import generator_for
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, describe, from_pretrained, save
from misfm.weights.file import read

INFO = WeightsInfo(
    network=NetworkInfo(name="unet", options={"channels": [4, 8]}),
    in_channels=1,
    num_classes=3,
    label_names=("background", "liver", "spleen"),
    patch_size=(8, 16, 16),
    spacing=(3.0, 1.5, 1.5),
    intensity={"rule": "ct", "window": [-1000, 1000]},
    pretext="volume-fusion",
    recipe="misfm",
    steps=100,
    data=DataInfo(count=7, fingerprint="abc"),
    licence="Apache-2.0",
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))


def test_save_and_read_back(tmp_path):
    path, saved = tmp_path / "weights.safetensors", model()
    save(path, saved, INFO)
    tensors, info = read(path)
    assert info == INFO
    assert {"misfm", "torch"} <= info.versions.keys()
    assert tensors.keys() == saved.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_description_is_json_with_every_promised_field(tmp_path):
    save(tmp_path / "weights.safetensors", model(), INFO)
    description = json.loads(json.dumps(describe(tmp_path)))
    promised = {"format_version", "network", "in_channels", "num_classes", "label_names", "patch_size"}
    promised |= {"spacing", "intensity", "mirror_axes", "pretext", "recipe", "steps", "data"}
    promised |= {"licence", "versions", "kept", "largest_part"}
    assert promised == WeightsInfo.model_fields.keys()
    assert promised < description.keys()
    assert description["network"] == {"name": "unet", "options": {"channels": [4, 8]}}
    assert description["num_tensors"] == 7


def test_half_precision_keeps_statistics_and_values_that_do_not_fit(tmp_path):
    path, saved = tmp_path / "weights.safetensors", model()
    save(path, saved, INFO, dtype=torch.float16)
    stored = load_file(path)
    assert stored["0.weight"].dtype == torch.float16
    torch.testing.assert_close(stored["0.weight"].float(), saved[0].weight.data, rtol=1e-3, atol=1e-6)
    assert stored["1.running_var"].dtype == torch.float32
    assert stored["1.num_batches_tracked"].dtype == torch.int64
    with torch.no_grad():
        saved[0].weight[0] = 1e6
    save(path, saved, INFO, dtype=torch.float16)
    assert load_file(path)["0.weight"].dtype == torch.float32


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save(path, model(), INFO)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        save(path, model(), INFO.model_copy(update={"steps": 200}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made(tmp_path):
    save(tmp_path / "missing" / "weights.safetensors", model(), INFO)
    assert read(tmp_path / "missing" / "weights.safetensors")[1] == INFO


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {"channels": (4, 6, 8)}), ("pctnet", {"channels": (4, 4, 6, 8, 12), "num_heads": (2, 2, 3)})],
)
def test_a_network_from_its_weights_is_the_same_for_another_patch_size(tmp_path, name, options):
    trained = create(name, num_classes=3, patch_size=(8, 32, 32), **options).eval()
    network = NetworkInfo(name=name, options=trained.backbone.options)
    save(
        tmp_path / "weights.safetensors",
        trained,
        INFO.model_copy(update={"network": network, "pretext": None}),
    )
    assert read(tmp_path / "weights.safetensors")[1].network == network
    larger = from_pretrained(tmp_path, patch_size=(32, 48, 32)).eval()
    assert larger.backbone.strides == trained.backbone.strides
    assert all(torch.equal(larger.state_dict()[key], value) for key, value in trained.state_dict().items())
    if larger.backbone.input_size is None:
        x = torch.randn(1, 1, 8, 32, 32, generator=generator_for("same"))
        assert torch.equal(larger(x), trained(x))


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_files_are_refused(tmp_path, length):
    path = tmp_path / "weights.safetensors"
    save(path, model(), INFO)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="cut short"):
        describe(path)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="another program wrote it"):
        describe(path)
    (tmp_path / "scan.nii").write_bytes(b"\x5c\x01\x00\x00" + bytes(400))
    with pytest.raises(WeightsError, match="neither a safetensors file nor a checkpoint"):
        describe(tmp_path / "scan.nii")
    with pytest.raises(WeightsError, match="There is no weights file"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**INFO.model_dump(mode="json"), "format_version": 2}), "update misfm"),
        (json.dumps({**INFO.model_dump(mode="json"), "num_classes": 0}), "not valid"),
        (json.dumps({**INFO.model_dump(mode="json"), "colour": "red"}), "not valid"),
        ("{", "not valid"),
        ("[]", "not valid"),
    ],
)
def test_descriptions_that_cannot_be_trusted_are_refused(tmp_path, text, message):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"misfm": text})
    with pytest.raises(WeightsError, match=message):
        describe(path)
