"""SimMIM: hidden tokens are replaced by a learnt one, and all are encoded."""

from itertools import product

import pytest
import torch

from misfm.errors import ConfigError
from misfm.models import create
from misfm.models.primus import build_primus
from misfm.pretext import Placement
from misfm.pretext.simmim import SimMIM
from misfm.seeding import generator_for

SIZE = (16, 24, 16)
TASK = SimMIM()


def model_for(task=TASK, token_order="whd"):
    torch.manual_seed(0)
    return task.build_model(
        build_primus(1, SIZE, embed_dim=24, depth=2, num_heads=2, token_order=token_order)
    )


def batch_for(task=TASK):
    noise = torch.randn(2, 1, *(side + 8 for side in SIZE), generator=generator_for(0))
    patches = 8 * torch.nn.functional.avg_pool3d(noise, 9, stride=1)
    return task.prepare(patches[:, None], Placement.whole(2, 1, SIZE), SIZE, generator_for(1))


def test_one_block_is_one_token_by_default():
    batch = batch_for()
    corners = batch.context[0][:, ::8, ::8, ::8]
    assert corners.flatten(1).sum(1).tolist() == [9, 9]  # int(0.75 * 12)
    assert bool((batch.context[0].view(2, 2, 8, 3, 8, 2, 8).sum((2, 4, 6)) % 512 == 0).all())


@pytest.mark.parametrize("token_order", ["whd", "hwd"])
def test_the_transformer_sees_the_learnt_token_where_voxels_are_hidden(token_order):
    model, batch = model_for(token_order=token_order), batch_for()
    encoder = model.backbone.encoder
    features = encoder.stem(batch.targets).clone()
    for sample, d, h, w in product(range(2), range(2), range(3), range(2)):
        if batch.context[0][sample, 8 * d, 8 * h, 8 * w]:
            features[sample, :, d, h, w] = model.mask_token
    handle = encoder.stem.register_forward_hook(lambda *_: features)
    expected = model.head(model.backbone(batch.targets))[0]
    handle.remove()
    assert torch.allclose(model(batch.targets, *batch.context), expected, atol=1e-5)


def test_hidden_voxels_are_not_seen():
    model, batch = model_for(), batch_for()
    assert torch.equal(model(batch.targets, *batch.context), model(batch.inputs, *batch.context))


def test_loss_falls_on_one_batch_and_reaches_every_parameter(overfit):
    model, batch = model_for(), batch_for()
    losses = overfit(TASK, model, batch, steps=40, lr=0.005)
    assert losses[-1] < 0.75 * losses[0]


def test_networks_without_tokens_are_refused():
    unet = create("unet", num_classes=1, patch_size=SIZE, channels=(4, 8, 8))
    with pytest.raises(ConfigError, match="UNet does not have"):
        TASK.build_model(unet.backbone)


def test_blocks_that_cut_tokens_are_refused():
    with pytest.raises(ConfigError, match=r"block_size to \(8, 8, 8\)"):
        model_for(SimMIM(block_size=(8, 12, 8)))
