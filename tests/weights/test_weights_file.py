"""Our weights file describes itself, is written whole or not at all, and is refused when it is not ours."""

import json
from importlib.resources import files

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from misfm.data.intensity import IntensityRule
from misfm.errors import DataError, WeightsError
from misfm.models import create
from misfm.seeding import generator_for
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, describe, from_pretrained, save
from misfm.weights.file import parse, read, rules_to_keep

INFO = WeightsInfo(
    network=NetworkInfo(name="unet", options={"channels": [4, 8]}),
    in_channels=1,
    num_classes=3,
    label_names=("background", "liver", "spleen"),
    patch_size=(8, 16, 16),
    spacing=(3.0, 1.5, 1.5),
    intensity={"kind": "ct", "window": [-1000, 1000]},
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
    promised |= {"licence", "versions", "kept", "largest_part", "channel_names", "whole_scans"}
    promised |= {"label_values", "regions_class_order", "scan_ranges", "quality"}
    assert promised == WeightsInfo.model_fields.keys()
    assert promised < description.keys()
    assert description["network"] == {"name": "unet", "options": {"channels": [4, 8]}}
    assert description["num_tensors"] == 7


def test_labels_have_the_values_of_their_classes_and_the_background_is_none():
    fine_tuned = INFO.model_copy(update={"pretext": None})
    assert fine_tuned.labels == {"liver": (1,), "spleen": (2,)}
    assert fine_tuned.model_copy(update={"label_names": ()}).labels == {"1": (1,), "2": (2,)}
    assert INFO.labels == {}


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
        (json.dumps({**INFO.model_dump(mode="json"), "format_version": 3}), "update misfm"),
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


@pytest.mark.parametrize("seed", range(4))
def test_one_flipped_bit_anywhere_is_found(tmp_path, seed):
    path = tmp_path / "weights.safetensors"
    save(path, model(), INFO)
    content = path.read_bytes()
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    inside, behind = generator_for(seed, "header"), generator_for(seed, "values")
    bits = torch.randint(0, header, (200,), generator=inside).tolist()
    bits += torch.randint(header, 8 * len(content), (200,), generator=behind).tolist()
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WeightsError, match="damaged"):
            parse(path, bytes(damaged))


def test_the_checksum_cannot_vanish_by_damage(tmp_path):
    path = tmp_path / "weights.safetensors"
    save(path, model(), INFO)
    content = path.read_bytes()
    for place in range(len("misfm_checksum")):
        name = bytearray(b"misfm_checksum")
        name[place] ^= 1
        damaged = content.replace(b"misfm_checksum", bytes(name))
        with pytest.raises(WeightsError, match="damaged"):
            parse(path, damaged)


def test_files_without_a_checksum_are_read_and_those_with_one_by_any_reader(tmp_path):
    path, saved = tmp_path / "weights.safetensors", model()
    save(path, saved, INFO)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == saved.state_dict().keys()
    assert metadata.keys() == {"misfm", "misfm_checksum"}
    save_file(load_file(path), tmp_path / "older.safetensors", {"misfm": metadata["misfm"]})
    save_file(load_file(path), tmp_path / "again.safetensors", metadata)
    for name in ("older", "again"):
        tensors, info = read(tmp_path / f"{name}.safetensors")
        assert info == INFO
        assert all(torch.equal(tensors[key], value) for key, value in saved.state_dict().items())


def test_the_same_weights_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, model(), INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_weights_that_are_shipped_have_a_checksum():
    content = (files("misfm.weights") / "builtin.safetensors").read_bytes()
    assert b'"misfm_checksum":"crc32:' in content[:100_000]
    damaged = bytearray(content)
    damaged[-1] ^= 1
    with pytest.raises(WeightsError, match="builtin is damaged"):
        parse("builtin", bytes(damaged))


def test_one_rule_is_that_of_every_channel():
    info = INFO.model_copy(update={"in_channels": 2})
    assert info.rules == (IntensityRule(kind="ct", window=(-1000, 1000)),) * 2
    assert INFO.model_copy(update={"intensity": {}}).rules == ()


def test_channels_that_differ_have_a_rule_each(tmp_path):
    rules = (IntensityRule(kind="ct", window=(-200, 600)), IntensityRule(kind="pet"))
    fields = {"in_channels": 2, "intensity": rules_to_keep(rules), "channel_names": ("CT", "PET")}
    info = INFO.model_copy(update=fields)
    save(tmp_path / "w.safetensors", model(), info)
    _, found = read(tmp_path / "w.safetensors")
    assert found.rules == rules
    assert (found.channel_names, found.format_version) == (("CT", "PET"), 2)
    assert rules_to_keep(rules[:1] * 2) == rules[0].model_dump(mode="json")


def test_what_older_readers_know_is_written_for_them(tmp_path):
    written = json.loads(INFO.as_json())
    assert written["format_version"] == 1
    assert "channel_names" not in written
    assert json.loads(INFO.model_copy(update={"intensity": {"kind": "pet"}}).as_json())["format_version"] == 2


def test_another_number_of_rules_than_channels_is_refused():
    with pytest.raises(ValidationError, match="another number of rules"):
        WeightsInfo(**{**INFO.model_dump(), "intensity": [{"kind": "ct"}, {"kind": "pet"}]})


REGIONS = {
    "num_classes": 2,
    "label_names": ("whole", "core"),
    "label_values": ((1, 2), (2,)),
    "regions_class_order": (1, 2),
    "pretext": None,
    "largest_part": (2,),
}


def test_regions_and_gaps_are_described_in_a_format_that_older_readers_refuse(tmp_path):
    for name, fields in (
        ("regions", REGIONS),
        ("gaps", {"pretext": None, "label_values": ((0,), (1,), (4,))}),
        ("plain", {"pretext": None}),
    ):
        info = INFO.model_copy(update=fields)
        save(tmp_path / f"{name}.safetensors", model(), info)
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            held = json.loads(file.metadata()["misfm"])
        assert held["format_version"] == (1 if name == "plain" else 2)
        assert ("label_values" in held) == (name != "plain")
        found = read(tmp_path / f"{name}.safetensors")[1]
        assert found.scheme == info.scheme
    assert INFO.model_copy(update=REGIONS).labels == {"whole": (1, 2), "core": (2,)}
    assert INFO.model_copy(update=REGIONS).largest_part_names == ["core"]
    assert INFO.model_copy(update={"pretext": None, "label_values": ((0,), (1,), (4,))}).labels == {
        "liver": (1,),
        "spleen": (4,),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"label_values": [[0], [1]]},
        {"label_values": [[0], [1], [2, 3]]},
        {"label_values": [[5], [1], [2]]},
        {"regions_class_order": [1, 2, 3]},
        {"label_values": [[1, 2, 3], [2, 3], [3]], "regions_class_order": [1, 9, 3]},
        {"label_values": [[1, 2, 3], [2, 3], [-3]], "regions_class_order": [1, 2, -3]},
    ],
)
def test_values_of_labels_that_do_not_fit_are_damage(tmp_path, fields):
    text = json.dumps({**INFO.model_dump(mode="json"), **fields})
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors", metadata={"misfm": text})
    with pytest.raises(WeightsError, match="not valid"):
        read(tmp_path / "weights.safetensors")
