"""Embeddings: how features are projected, and NT-Xent against a loop."""

import math

import pytest
import torch

from misfm.errors import ConfigError
from misfm.models import create
from misfm.pretext.embedding import (
    EmbeddingModel,
    encode,
    matching_score,
    nt_xent,
    pair_up,
    partners,
    require_others,
)
from misfm.seeding import generator_for


def test_features_of_padding_are_dropped():
    backbone = create("unet", num_classes=2, patch_size=(16, 16, 16), channels=(4, 8, 8)).backbone
    features = encode(backbone, torch.zeros(1, 1, 13, 16, 9))
    assert [tuple(feature.shape[2:]) for feature in features] == [(13, 16, 9), (7, 8, 5), (4, 4, 3)]


def test_an_embedding_projects_the_averages_of_all_features():
    backbone = create("unet", num_classes=2, patch_size=(16, 16, 16), channels=(4, 8, 8)).backbone
    model = EmbeddingModel(backbone, (6, 5, 3))
    x = torch.randn(2, 1, 16, 16, 16)
    linear = [layer for layer in model.projector if isinstance(layer, torch.nn.Linear)]
    vector = torch.cat([feature.mean((2, 3, 4)) for feature in backbone.encoder(x)], 1)
    for layer in linear[:2]:
        vector = layer(vector)
        spread = (vector.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        vector = ((vector - vector.mean(1, keepdim=True)) / spread).relu()
    assert [layer.out_features for layer in linear] == [6, 5, 3]
    assert torch.allclose(model(x), linear[2](vector), atol=1e-5)


def test_nt_xent_by_a_loop():
    vectors = torch.randn(6, 4, generator=generator_for(0))
    losses = []
    for i in range(6):
        cosine = [float(torch.cosine_similarity(vectors[i], other, dim=0)) for other in vectors]
        others = sum(math.exp(cosine[j] / 0.5) for j in range(6) if j != i)
        losses.append(-math.log(math.exp(cosine[i ^ 1] / 0.5) / others))
    assert float(nt_xent(vectors, 0.5)) == pytest.approx(sum(losses) / 6, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nt_xent_is_finite_for_equal_and_for_zero_vectors(dtype):
    for vectors in (torch.ones(8, 3, dtype=dtype), torch.zeros(8, 3, dtype=dtype)):
        vectors.requires_grad_()
        loss = nt_xent(vectors, 0.1)
        loss.backward()
        assert loss.item() == pytest.approx(math.log(7), rel=1e-2)
        assert bool(vectors.grad.isfinite().all())


def test_matching_score_of_the_truth_and_of_noise():
    views = torch.randn(200, 16, generator=generator_for(1))
    assert matching_score(torch.stack([views, 3 * views], 1).flatten(0, 1)) == {
        "matching_accuracy": 1.0,
        "chance_accuracy": 1 / 399,
    }
    noise = matching_score(torch.randn(400, 16, generator=generator_for(2)))
    assert noise["matching_accuracy"] < 0.02


def test_views_of_a_pair_follow_each_other():
    crops = [(torch.full((1, 1, 1, 1), float(i)), torch.full((1, 1, 1, 1), 10.0 + i)) for i in range(3)]
    assert pair_up(crops).flatten().tolist() == [0, 10, 1, 11, 2, 12]
    assert partners(6, torch.device("cpu")).tolist() == [1, 0, 3, 2, 5, 4]
    with pytest.raises(ConfigError, match="batch_size to 2"):
        require_others(1, "SimCLR")
    with pytest.raises(ConfigError, match="a single one; set batch_size to 2"):
        nt_xent(torch.ones(2, 3), 0.5)
