"""S3D: an encoder that computes on visible voxels only, and is a plain one afterwards."""

from itertools import product

import pytest
import torch

from misfm.errors import ConfigError
from misfm.models import create
from misfm.pretext import Placement
from misfm.pretext.s3d import S3D, Activity, Densify, sparse, sparse_norm
from misfm.seeding import generator_for

SIZE = (16, 16, 16)
TASK = S3D(block_size=(4, 4, 4))
NETWORKS = {
    "unet": {"channels": (4, 8, 8)},
    "resenc": {"channels": (4, 8, 8), "blocks": (1, 1, 2)},
    "fmunet": {"channels": (2, 4, 4, 4, 4), "depth": 1, "dropout": 0.0},
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def tiny(network, in_channels=1):
    torch.manual_seed(0)
    options = NETWORKS[network]
    model = create(network, in_channels=in_channels, num_classes=1, patch_size=(32, 32, 32), **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # norms, too: gains and biases that do something
    return model.backbone


def batch_for(task=TASK, size=SIZE, channels=1):
    patches = torch.nn.functional.avg_pool3d(
        torch.randn(2, channels, *(side + 4 for side in size), generator=generator_for(0)), 5, stride=1
    )
    return task.prepare(4 * patches[:, None], Placement.whole(2, 1, size), size, generator_for(1))


@every_network
def test_with_nothing_hidden_the_encoder_is_the_plain_one(network):
    encoder, x = tiny(network).encoder, torch.randn(2, 1, 32, 32, 32, generator=generator_for(2))
    with sparse(encoder, Activity(torch.ones(2, 1, 32, 32, 32))):
        features = encoder(x)
    for ours, plain in zip(features, encoder(x), strict=True):
        assert torch.allclose(ours, plain, atol=1e-4)


@every_network
def test_a_hidden_half_is_as_good_as_none(network):
    encoder, x = tiny(network).encoder, torch.randn(2, 1, 32, 32, 64, generator=generator_for(3))
    visible = torch.ones_like(x)
    visible[..., 32:] = 0
    with sparse(encoder, Activity(visible)):
        features = encoder(x * visible)
    for ours, half in zip(features, encoder(x[..., :32]), strict=True):
        side = half.shape[-1]
        assert ours.shape[-1] == 2 * side
        assert torch.allclose(ours[..., :side], half, atol=1e-4)
        assert not bool(ours[..., side:].any())


def test_norm_counts_active_features_only():
    x = torch.randn(2, 3, 4, 5, 6, generator=generator_for(4))
    active = torch.rand(2, 1, 4, 5, 6, generator=generator_for(5)) < 0.4
    x = x * active
    norm = torch.nn.InstanceNorm3d(3, affine=True)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    normed = sparse_norm(x, active, norm)
    for sample, channel in product(range(2), range(3)):
        mask = active[sample, 0]
        values = x[sample, channel][mask]
        scaled = (values - values.mean()) / (values.var(correction=0) + norm.eps).sqrt()
        expected = scaled * norm.weight[channel] + norm.bias[channel]
        assert torch.allclose(normed[sample, channel][mask], expected, atol=1e-5)
        assert not bool(normed[sample, channel][~mask].any())


def test_norm_of_a_sample_without_active_features_is_zero_and_has_finite_gradients():
    x = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    normed = sparse_norm(x, torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool), torch.nn.InstanceNorm3d(2))
    normed.sum().backward()
    assert not bool(normed.any())
    assert bool(x.grad.isfinite().all())


def test_a_feature_is_active_if_it_stands_for_a_visible_voxel():
    visible = (torch.rand(2, 1, 8, 8, 8, generator=generator_for(7)) < 0.2).float()
    active = Activity(visible).at(torch.zeros(2, 5, 4, 2, 8))
    assert active.shape == (2, 1, 4, 2, 8)
    for sample, d, h, w in product(range(2), range(4), range(2), range(8)):
        block = visible[sample, 0, 2 * d : 2 * d + 2, 4 * h : 4 * h + 4, w]
        assert active[sample, 0, d, h, w] == bool(block.any())


def test_holes_are_filled_with_the_token():
    densify = Densify(3, torch.nn.Identity())
    x = torch.randn(2, 3, 4, 4, 4, generator=generator_for(8))
    active = torch.rand(2, 1, 4, 4, 4, generator=generator_for(9)) < 0.5
    x = x * active
    filled = densify(x, active)
    holes = (~active).expand_as(x)
    assert torch.equal(filled[holes], densify.token.expand_as(x)[holes])
    assert torch.equal(filled[~holes], sparse_norm(x, active, densify.norm)[~holes])
    assert 0 < float(densify.token.detach().abs().max()) <= 0.02


@every_network
def test_the_backbone_left_behind_is_a_plain_one(network):
    backbone = tiny(network)
    names = set(backbone.state_dict())
    model, batch = TASK.build_model(backbone), batch_for(size=(32, 32, 32))
    assert model(batch.inputs, *batch.context).shape == batch.inputs.shape
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, *SIZE), torch.zeros(1, *SIZE, dtype=torch.bool))  # hooks go here, too
    assert model.backbone is backbone
    assert set(backbone.state_dict()) == names == set(tiny(network).state_dict())
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("network", ["unet", "resenc"])
def test_padding_to_the_stride_is_hidden_too(network):
    size = (13, 16, 10)
    batch = batch_for(size=size)
    model = TASK.build_model(tiny(network))
    outputs = model(batch.inputs, *batch.context)
    assert outputs.shape == batch.inputs.shape
    room = torch.zeros(2, 1, 16, 16, 12)
    room[:, :, :13, :, :10] = batch.inputs
    hidden = torch.ones(2, 16, 16, 12, dtype=torch.bool)
    hidden[:, :13, :, :10] = batch.context[0]
    assert torch.allclose(model(room, hidden)[:, :, :13, :, :10], outputs, atol=1e-4)


@pytest.mark.parametrize("network", ["unet", "resenc"])
def test_loss_falls_on_one_batch_and_reaches_every_parameter(network, overfit):
    torch.manual_seed(0)
    backbone = create(network, num_classes=1, patch_size=SIZE, **NETWORKS[network]).backbone
    model, batch = TASK.build_model(backbone), batch_for()
    losses = overfit(TASK, model, batch)
    assert losses[-1] < 0.75 * losses[0]


def test_networks_that_mix_what_is_visible_with_what_is_not_are_refused():
    pctnet = create("pctnet", num_classes=1, patch_size=(32, 32, 32), channels=(4, 8, 8, 16, 16))
    with pytest.raises(ConfigError, match="PCTNet's encoder cannot"):
        TASK.build_model(pctnet.backbone)
