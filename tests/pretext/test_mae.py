"""MAE: networks on a grid see zeros, Primus sees nothing of the hidden tokens."""

from itertools import product

import pytest
import torch

from misfm.errors import ConfigError
from misfm.models import create
from misfm.models.primus import build_primus
from misfm.pretext import Placement
from misfm.pretext.mae import MAE, TokenDecoder, TokenModel, VoxelModel
from misfm.pretext.tokens import hidden_tokens
from misfm.seeding import generator_for

SIZE = (16, 24, 16)
TASK = MAE(block_size=(8, 8, 8))
every_order = pytest.mark.parametrize("token_order", ["whd", "hwd"])


def tiny_primus(token_order="whd", patch_size=SIZE, in_channels=1):
    torch.manual_seed(0)
    return build_primus(in_channels, patch_size, embed_dim=24, depth=2, num_heads=2, token_order=token_order)


def tiny_unet():
    torch.manual_seed(0)
    return create("unet", num_classes=1, patch_size=SIZE, channels=(4, 8, 8)).backbone


def batch_for(task=TASK, size=SIZE):
    noise = torch.randn(2, 1, *(side + 8 for side in size), generator=generator_for(0))
    patches = 8 * torch.nn.functional.avg_pool3d(noise, 9, stride=1)
    return task.prepare(patches[:, None], Placement.whole(2, 1, size), size, generator_for(1))


def test_the_network_decides_how_blocks_are_hidden():
    assert isinstance(TASK.build_model(tiny_primus()), TokenModel)
    assert isinstance(TASK.build_model(tiny_unet()), VoxelModel)


@pytest.mark.parametrize("size", [SIZE, (13, 16, 10)])
def test_a_voxel_model_is_backbone_and_head(size):
    model, batch = TASK.build_model(tiny_unet()), batch_for(size=size)
    outputs = model(batch.inputs, *batch.context)
    assert outputs.shape == batch.inputs.shape
    if size == SIZE:
        assert torch.equal(outputs, model.head(model.backbone(batch.inputs))[0])


@every_order
def test_a_token_is_hidden_with_its_voxels(token_order):
    encoder = tiny_primus(token_order).encoder
    batch = batch_for()
    gone = hidden_tokens(encoder, batch.context[0])
    first, second, third = (3, 2, 2) if token_order == "hwd" else (2, 3, 2)
    places = list(product(range(first), range(second), range(third)))
    for sample in range(2):
        for token, (a, b, w) in enumerate(places):
            d, h = (b, a) if token_order == "hwd" else (a, b)
            assert gone[sample, token] == batch.context[0][sample, 8 * d, 8 * h, 8 * w]


@every_order
def test_tokens_go_back_to_the_grid_they_came_from(token_order):
    encoder = tiny_primus(token_order).encoder
    x = torch.randn(2, 1, *SIZE, generator=generator_for(2))
    assert torch.equal(encoder.to_grid(encoder.embed(x)), encoder.stem(x))
    assert torch.equal(encoder.to_grid(encoder.encode(encoder.embed(x))), encoder(x)[0])


@every_order
def test_primus_encodes_visible_tokens_only(token_order):
    model, batch = TASK.build_model(tiny_primus(token_order)), batch_for()
    seen = []
    model.backbone.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    hidden = batch.context[0][:, None]
    outputs = model(batch.inputs, *batch.context)
    assert seen[0].shape == (2, 3, 24)  # int(0.75 * 12) tokens are gone
    assert outputs.shape == batch.inputs.shape
    assert torch.equal(model(batch.inputs.masked_fill(hidden, 7.0), *batch.context), outputs)
    assert not torch.allclose(model(batch.inputs.masked_fill(~hidden, 7.0), *batch.context), outputs)


def test_the_token_decoder_fills_gaps_and_keeps_places():
    encoder = tiny_primus().encoder
    decoder = TokenDecoder(tiny_primus())
    tokens = torch.randn(2, 4, 24, generator=generator_for(3))
    kept = torch.tensor([[0, 3, 7, 11], [1, 2, 5, 6]])
    sequence = torch.empty(2, 12, 24)
    for sample, place in product(range(2), range(12)):
        present = kept[sample].tolist()
        token = tokens[sample, present.index(place)] if place in present else decoder.mask_token[0, 0]
        sequence[sample, place] = token + decoder.pos_embed[0, place]
    for block in decoder.blocks:
        sequence = block(sequence, encoder.rotation)
    assert torch.allclose(decoder(tokens, kept, encoder.rotation), decoder.norm(sequence), atol=1e-5)


@pytest.mark.parametrize("backbone", [tiny_unet, tiny_primus])
def test_loss_falls_on_one_batch_and_reaches_every_parameter(backbone, overfit):
    model, batch = TASK.build_model(backbone()), batch_for()
    losses = overfit(TASK, model, batch, steps=40, lr=0.005)
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("block_size", "patch_size"), [((4, 8, 8), SIZE), ((16, 16, 16), SIZE), (None, (24, 24, 24))]
)
def test_blocks_that_do_not_tile_a_primus_patch_are_refused(block_size, patch_size):
    with pytest.raises(ConfigError, match=r"block_size to \(8, 8, 8\)"):
        MAE(block_size=block_size).build_model(tiny_primus(patch_size=patch_size))


def test_blocks_of_several_tokens_fit_where_they_tile_the_patch():
    task = MAE(block_size=(8, 16, 8))
    batch = batch_for(task, (16, 32, 16))
    model = task.build_model(tiny_primus(patch_size=(16, 32, 16)))
    assert model(batch.inputs, *batch.context).shape == batch.inputs.shape
