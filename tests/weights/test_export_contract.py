"""Every export format: what it writes is whole and told of, what it cannot write leaves nothing behind."""

import inspect

import pytest
import torch

import misfm.models
from misfm import weights
from misfm.commands.export import export
from misfm.errors import ConfigError, DataError, WeightsError
from misfm.weights.exports import EXPORTS, ExportFormat

FORMATS = EXPORTS.names()
NEEDS = {"onnx": "onnx"}
"""Packages that a format needs and an installation may lack."""


@pytest.fixture(params=FORMATS)
def name(request):
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param], reason="it comes with misfm[export]")
    return request.param


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights of a tiny network that every format can hold."""
    model = misfm.models.create(
        "resenc",
        num_classes=3,
        patch_size=(16, 32, 32),
        channels=(4, 6),
        blocks=(1, 1),
        strides=((1, 2, 2),),
    )
    network = weights.NetworkInfo(name="resenc", options=model.backbone.options)
    info = weights.WeightsInfo(
        network=network,
        in_channels=1,
        num_classes=3,
        patch_size=(16, 32, 32),
        spacing=(3.0, 1.0, 1.0),
        steps=1,
        data=None,
    )
    path = tmp_path_factory.mktemp("source") / "w.safetensors"
    weights.save(path, model, info)
    return path


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_is_documented(form):
    found = EXPORTS.get(form)
    assert issubclass(found, ExportFormat)
    assert inspect.getdoc(found)


def test_what_is_written_is_told_and_nothing_else(source, tmp_path, name):
    before = source.read_bytes()
    result = export(source, name, tmp_path / "new" / "out")
    assert result["to"] == name
    assert sorted(result["written"]) == [str(path) for path in files_below(tmp_path)]
    assert (tmp_path / "new" / "out").exists()
    assert result["pretrained_parameters"] == result["num_parameters"]
    assert source.read_bytes() == before


def test_what_was_there_is_replaced(source, tmp_path, name):
    first = export(source, name, tmp_path / "out")["written"]
    sizes = [path.stat().st_size for path in files_below(tmp_path)]
    assert export(source, name, tmp_path / "out")["written"] == first
    assert [path.stat().st_size for path in files_below(tmp_path)] == sizes


def test_random_numbers_of_the_user_go_on_as_they_were(source, tmp_path, name):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    export(source, name, tmp_path / "out")
    assert torch.equal(torch.rand(4), expected)


def test_a_place_that_cannot_be_written_is_one_sentence(source, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write") as error:
        export(source, name, tmp_path / "file" / "out")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert files_below(tmp_path) == [tmp_path / "file"]


def test_an_encoder_without_a_head_is_written_or_refused_whole(source, tmp_path, name):
    tensors, info = weights.file.read(source)
    encoder = {key: value for key, value in tensors.items() if key.startswith("backbone.encoder.")}
    weights.file.write(tmp_path / "encoder.safetensors", encoder, info)
    refusal = ""
    notes = []
    try:
        notes = export(tmp_path / "encoder.safetensors", name, tmp_path / "out")["notes"]
    except WeightsError as error:
        refusal = str(error)
    assert any("not in the source" in note for note in notes) or "encoder.safetensors" in refusal
    assert (tmp_path / "out").exists() == (not refusal)


@pytest.mark.parametrize("form", FORMATS)
def test_options_without_a_meaning_are_refused_before_anything_is_read(tmp_path, form):
    options = []
    if not EXPORTS.get(form).takes_dataset:
        options.append({"dataset": tmp_path})
    if not EXPORTS.get(form).takes_patch_size:
        options.append({"patch_size": (8, 8, 8)})
    for given in options:
        with pytest.raises(ConfigError, match="is for --to nnunet"):
            export(tmp_path / "none.safetensors", form, tmp_path / "out", **given)
