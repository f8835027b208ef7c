"""Transfer: what is taken, adapted, left fresh and refused, and a report that says so."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import misfm.models
from misfm import weights
from misfm.errors import ConfigError, WeightsError
from misfm.weights.adapt import with_channels

PATCH = (8, 16, 16)
OPTIONS = {"channels": [4, 4, 6, 8, 12], "num_heads": [2, 2, 3], "window_sizes": [2, 2, 2]}


def pctnet(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"num_classes": 3, "patch_size": PATCH, **OPTIONS, **changes}
    return misfm.models.create("pctnet", **arguments)


def info(**changes):
    fields = {
        "network": weights.NetworkInfo(name="pctnet", options=OPTIONS),
        "in_channels": 1,
        "num_classes": 3,
        "patch_size": PATCH,
        "spacing": None,
        "steps": 10,
        "data": None,
    }
    return weights.WeightsInfo(**{**fields, **changes})


@pytest.fixture
def run_dir(tmp_path):
    """A run folder whose weights come from ``pctnet(seed=0)``."""
    weights.save(tmp_path / "weights.safetensors", pctnet(), info())
    return tmp_path


def same(model, other, prefix=""):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(prefix))


def test_a_run_folder_fills_everything(run_dir):
    model = pctnet(seed=1)
    report = weights.load(model, run_dir)
    assert same(model, pctnet())
    assert report.adapted == report.reinitialised == report.unused == []
    assert report.loaded[0] == ("backbone.encoder.project.weight", (4, 1, 1, 3, 3))
    assert "100.0% of" in str(report).splitlines()[0]


def test_encoder_transfer_leaves_decoder_and_head_untouched(run_dir):
    model = pctnet(seed=1)
    report = weights.load(model, run_dir, transfer="encoder")
    assert same(model, pctnet(), "backbone.encoder.")
    assert same(model, pctnet(seed=1), "backbone.decoder.")
    assert same(model, pctnet(seed=1), "head.")
    assert all(entry.name.startswith("backbone.encoder.") for entry in report.loaded)


@pytest.mark.parametrize(
    ("pretext", "num_classes", "taken"), [(None, 3, True), ("volume-fusion", 3, False), (None, 4, False)]
)
def test_the_head_is_taken_when_it_fits_and_is_not_a_pretext(tmp_path, pretext, num_classes, taken):
    path = tmp_path / "weights.safetensors"
    weights.save(path, pctnet(), info(pretext=pretext))
    model = pctnet(seed=1, num_classes=num_classes)
    report = weights.load(model, path)
    assert same(model, pctnet(seed=1, num_classes=num_classes), "head.") is not taken
    assert any(entry.name.startswith("head.") for entry in report.reinitialised) is not taken


def test_half_precision_weights_load_as_single(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, pctnet(), info(), dtype=torch.float16)
    model = pctnet(seed=1)
    weights.load(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for ours, theirs in zip(model.parameters(), pctnet().parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_more_channels_answer_to_a_repeated_image_as_before(run_dir):
    model = pctnet(seed=1, in_channels=3)
    report = weights.load(model, run_dir)
    name, shape, how = report.adapted[0]
    assert (name, shape) == ("backbone.encoder.project.weight", (4, 3, 1, 3, 3))
    assert how == "from 1 to 3 image channels"
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        repeated = model.eval()(image.expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(repeated, pctnet().eval()(image))


@settings(max_examples=20, deadline=None)
@given(old=st.integers(1, 5), new=st.integers(1, 5))
def test_channel_adaptation_preserves_the_answer_to_equal_channels(old, new):
    weight = torch.randn(2, old, 3, 3, 3)
    adapted = with_channels(weight, new)
    assert adapted.shape == (2, new, 3, 3, 3)
    torch.testing.assert_close(adapted.sum(1), weight.sum(1))


def test_an_own_state_dict_is_a_source():
    model = pctnet(seed=1)
    weights.load(model, pctnet().state_dict())
    assert same(model, pctnet())


def test_weights_of_another_network_are_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "weights.safetensors"
    unet = misfm.models.create("unet", num_classes=3, patch_size=PATCH)
    weights.save(path, unet, info(network=weights.NetworkInfo(name="unet")))
    model = pctnet(seed=1)
    with pytest.raises(WeightsError, match=r"network 'unet'.* fit 0% of this PCTNet"):
        weights.load(model, path)
    with pytest.raises(WeightsError, match="an unknown network"):
        weights.load(model, unet.state_dict())
    assert same(model, pctnet(seed=1))


def test_another_position_index_is_refused_and_nothing_changes(run_dir):
    model = pctnet(seed=1, position_index="mis-fm")
    with pytest.raises(WeightsError, match=r'weights\.safetensors was trained .*position_index="textbook"'):
        weights.load(model, run_dir)
    assert same(model, pctnet(seed=1))
    weights.load(model, pctnet().state_dict())  # which says nothing about it
    assert same(model, pctnet())


def test_undefined_values_are_refused():
    state = pctnet().state_dict()
    state["backbone.encoder.conv0.2.bias"] = torch.full((4,), torch.nan)
    model = pctnet(seed=1)
    with pytest.raises(WeightsError, match=r"first in backbone\.encoder\.conv0\.2\.bias"):
        weights.load(model, state)
    assert same(model, pctnet(seed=1))


def test_the_report_names_what_started_fresh_and_what_was_not_needed(run_dir):
    model = pctnet(seed=1, num_classes=7, window_sizes=(2, 1, 1))
    text = str(weights.load(model, run_dir))
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    head = len(model.head.state_dict())
    assert lines["reinitialised"].startswith(f"  reinitialised {head + 4} tensors: head.levels ({head}), ")
    assert lines["reinitialised"].endswith("encoder.block3 (2), decoder.block3 (2)")  # tables of one window
    assert f"head.levels ({head})" in lines["unused"]


def test_from_pretrained_rebuilds_the_network(run_dir):
    model = weights.from_pretrained(run_dir)
    assert same(model, pctnet())
    other = weights.from_pretrained(run_dir, num_classes=2, in_channels=2, patch_size=(16, 32, 32))
    assert other(torch.zeros(2, 2, 16, 32, 32)).shape == (2, 2, 16, 32, 32)
    assert torch.equal(
        other.state_dict()["backbone.decoder.conv0.2.weight"], pctnet().backbone.decoder.conv0[2].weight
    )


@pytest.mark.parametrize("call", [weights.describe, weights.from_pretrained])
def test_sources_that_cannot_be_opened_say_why(call, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="ships no builtin weights"):
        call("builtin")
    with pytest.raises(WeightsError, match="no address on the hub"):
        call("hf://repo")


def test_builtin_weights_are_package_data(tmp_path, monkeypatch):
    weights.save(tmp_path / "builtin.safetensors", pctnet(), info())
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    model = pctnet(seed=1)
    assert "builtin" in str(weights.load(model, "builtin"))
    assert same(model, pctnet())


def test_wrong_use_is_one_sentence():
    with pytest.raises(ConfigError, match="'all', 'encoder' or 'backbone'"):
        weights.load(pctnet(), {}, transfer="decoder")
    with pytest.raises(WeightsError, match="does not say which network"):
        weights.from_pretrained(pctnet().state_dict())
