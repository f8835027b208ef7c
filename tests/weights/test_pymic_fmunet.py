"""Weights of FMUNet as PyMIC saves them, and how they go into networks that differ."""

import numpy as np
import pytest
import torch

import misfm.models
from misfm import weights
from misfm.errors import WeightsError

CHANNELS = (4, 6, 8, 10, 12)


def published_state(*, anisotropy=0, num_classes=5, in_channels=1, depth=2):
    """A state dict with PyMIC's names and random values: norms are 1-D, convolutions 5-D."""
    depths = [1 if level < anisotropy else 3 for level in range(5)]
    shapes = {"project": ((CHANNELS[0], in_channels, depths[0], 3, 3), None)}
    for level, width in enumerate(CHANNELS):
        kernel = (depths[level], 3, 3)
        for unit in range(depth):
            for block in ("encoder.en_conv", "decoder.de_conv"):
                shapes[f"{block}{level}.conv_list.{unit}"] = ((width, width, *kernel), "3")
        if level < 4:
            coarse = CHANNELS[level + 1]
            shapes[f"encoder.down{level}.down"] = ((coarse, width, *kernel), "2")
            shapes[f"decoder.upcat{level}.up"] = ((width, coarse, 1, 1, 1), "2")
            shapes[f"decoder.upcat{level}.conv"] = ((width, 2 * width, *kernel), "2")
            shapes[f"out_layers.{level}"] = ((num_classes, width, *kernel), "2")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (shape, position) in shapes.items():
        if position is None:
            layer = name
        else:
            layer = f"{name}.{position}"
            state[f"{name}.0.weight"] = torch.rand(shape[1], generator=generator)
            state[f"{name}.0.bias"] = torch.randn(shape[1], generator=generator)
        state[f"{layer}.weight"] = torch.randn(shape, generator=generator)
        state[f"{layer}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def network(*, num_classes=5, in_channels=1, **options):
    torch.manual_seed(0)
    settings = {"channels": CHANNELS, **options}
    return misfm.models.create(
        "fmunet",
        num_classes=num_classes,
        in_channels=in_channels,
        patch_size=(16, 32, 32),
        deep_supervision=True,
        **settings,
    )


def names(entries):
    return {entry.name for entry in entries}


@pytest.fixture
def checkpoint(tmp_path):
    """A file as PyMIC writes it: settings absent, the validation score a numpy number."""
    path = tmp_path / "fmunet_abk1k_volf.pt"
    state = published_state(anisotropy=1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    content = {"iteration": 200000, "valid_pred": np.float64(0.6), "model_state_dict": state}
    torch.save({**content, "optimizer_state_dict": optimizer}, path)
    return path


def test_a_checkpoint_tells_its_network_from_shapes(checkpoint):
    description = weights.describe(checkpoint)
    assert description["format"] == "MIS-FM FMUNet (PyMIC)"
    options = {"channels": list(CHANNELS), "depth": 2, "anisotropy": 1}
    assert description["network"] == {"name": "fmunet", "options": options}
    assert (description["in_channels"], description["num_classes"]) == (1, 5)
    assert description["steps"] == 200000
    assert description["num_tensors"] == 146


def test_a_checkpoint_fills_all_of_its_network(checkpoint):
    model = network(anisotropy=1)
    report = weights.load(model, checkpoint)
    assert report.reinitialised == report.adapted == report.unused == []
    assert report.pretrained_parameters == report.num_parameters
    x = torch.randn(1, 1, 16, 32, 32)
    single = weights.from_pretrained(checkpoint, patch_size=(16, 32, 32))
    with torch.no_grad():
        assert torch.equal(single.eval()(x), model.eval()(x)[0])


@pytest.mark.parametrize("anisotropy", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_mapping_tells_anisotropy_depth_channels_and_classes(anisotropy, depth):
    state = published_state(anisotropy=anisotropy, depth=depth, in_channels=2, num_classes=3)
    description = weights.describe(state)
    assert description["network"]["options"]["anisotropy"] == anisotropy
    assert description["network"]["options"]["depth"] == depth
    assert (description["in_channels"], description["num_classes"]) == (2, 3)


def test_other_classes_start_with_a_fresh_head():
    report = weights.load(network(num_classes=2), published_state())
    assert len(report.reinitialised) == 16
    assert all(name.startswith("head.") for name in names(report.reinitialised))


def test_more_image_channels_share_the_published_stem():
    state = published_state()
    model = network(in_channels=3)
    report = weights.load(model, state)
    assert names(report.adapted) == {"backbone.encoder.project.weight"}
    stem = model.backbone.encoder.project.weight
    torch.testing.assert_close(stem.sum(dim=1, keepdim=True), state["project.weight"])


def test_isotropic_kernels_are_averaged_for_in_plane_levels():
    state = published_state()
    model = network(anisotropy=1, num_classes=2)
    report = weights.load(model, state)
    assert report.adapted
    assert all(entry.how == "kernel averaged to 1x3x3" for entry in report.adapted)
    assert all(name.startswith("head.") for name in names(report.reinitialised))
    kernel = model.backbone.encoder.levels[0].units[0][-1].weight
    expected = state["encoder.en_conv0.conv_list.0.3.weight"].mean(dim=2, keepdim=True)
    torch.testing.assert_close(kernel, expected)


def test_in_plane_kernels_cannot_grow_and_the_report_says_so():
    report = weights.load(network(anisotropy=0), published_state(anisotropy=2))
    fresh = {name for name in names(report.reinitialised) if name.startswith("backbone.")}
    assert len(fresh) == 1 + 2 * (2 + 2 + 1 + 1)  # the stem; in two levels 4 units, a step down, a merge
    assert "backbone.encoder.levels.1.units.0.3.weight" in fresh
    assert "backbone.encoder.levels.2.units.0.3.weight" not in fresh
    assert 0.7 < report.pretrained_parameters / report.num_parameters < 1


@pytest.mark.parametrize(("depth", "fresh", "unused"), [(1, 0, 40), (3, 40, 0)])
def test_another_depth_keeps_the_units_that_both_have(depth, fresh, unused):
    report = weights.load(network(depth=depth), published_state(depth=2))
    assert len(report.reinitialised) == fresh
    assert len(report.unused) == unused


def test_the_encoder_alone_can_be_taken():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = weights.load(model, published_state(), transfer="encoder")
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == names(report.loaded) == {name for name in after if name.startswith("backbone.encoder.")}


def test_another_network_is_refused(checkpoint):
    for name in ("unet", "pctnet"):
        other = misfm.models.create(name, num_classes=5, patch_size=(16, 32, 32))
        with pytest.raises(WeightsError, match=r"network 'fmunet'.* fit 0% of this"):
            weights.load(other, checkpoint)
    with pytest.raises(WeightsError, match=r"network 'fmunet'.* fit \d% of this FMUNet"):
        weights.load(network(channels=(5, 7, 9, 11, 13)), checkpoint)


@pytest.mark.parametrize("name", ["project.weight", "encoder.en_conv4.conv_list.0.3.weight"])
def test_incomplete_and_misshapen_weights_are_one_sentence(name):
    state = published_state()
    broken = state.pop(name)
    with pytest.raises(WeightsError, match=f"FMUNet weights are incomplete: they lack '{name}'"):
        weights.load(network(), state)
    for shape in [(), (4,)]:
        with pytest.raises(WeightsError, match="FMUNet's names but not its shapes"):
            weights.load(network(), {**state, name: broken.new_zeros(shape)})


def test_values_that_are_not_numbers_are_refused():
    state = published_state()
    state["decoder.de_conv4.conv_list.1.3.bias"][0] = torch.nan
    with pytest.raises(WeightsError, match="infinite or undefined"):
        weights.load(network(), state)


def test_a_truncated_checkpoint_is_refused(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-3000])
    with pytest.raises(WeightsError, match="not a whole torch checkpoint"):
        weights.load(network(), checkpoint)
