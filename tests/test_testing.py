"""The checks of the contracts catch what breaks them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from misfm.models import NETWORKS
from misfm.models.unet import build_unet
from misfm.pretext.patch_swapping import PatchSwapping
from misfm.testing import NetworkExample, networks, pretexts, shares

SWAPPING = {"num_swaps": (3, 6), "block_size": (3, 4, 2)}


class Writes(PatchSwapping):
    def prepare(self, patches, placement, patch_size, generator):
        return super().prepare(patches.clamp_(max=2), placement, patch_size, generator)


class AsksTheGlobalGenerator(PatchSwapping):
    def prepare(self, patches, placement, patch_size, generator):
        return super().prepare(patches + torch.randn(1), placement, patch_size, generator)


class CountsPadding(PatchSwapping):
    def prepare(self, patches, placement, patch_size, generator):
        batch = super().prepare(patches, placement, patch_size, generator)
        return replace(batch, real=torch.ones_like(batch.real))


class MixesUnsaid(PatchSwapping):
    def prepare(self, patches, placement, patch_size, generator):
        batch = super().prepare(patches, placement, patch_size, generator)
        return replace(batch, inputs=batch.inputs + 0.1 * batch.inputs.roll(1, 0))


class Mixes(MixesUnsaid):
    samples_meet = "in inputs"


class MeansOfItsOwn(PatchSwapping):
    def loss(self, outputs, batch):
        error = (outputs - batch.targets).square()[batch.real[:, None].expand_as(outputs)]
        return {"restoration": error.mean()}


class ComparesOutputs(MeansOfItsOwn):
    samples_meet = "in loss"


class TransfersWhatDidNotLearn(PatchSwapping):
    def build_model(self, backbone):
        backbone.decoder.requires_grad_(False)
        return super().build_model(backbone)


class HasNothingBeside(PatchSwapping):
    def score(self, outputs, batch):
        return {"restored_error": super().score(outputs, batch)["restored_error"]}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Writes, pretexts.preparing_is_pure),
        (AsksTheGlobalGenerator, pretexts.the_generator_decides_everything),
        (CountsPadding, pretexts.what_padding_and_hidden_voxels_show_is_in_no_loss),
        (MixesUnsaid, shares.samples_meet_only_where_it_is_said),
        (MeansOfItsOwn, shares.losses_and_scores_are_those_of_the_whole_batch),
        (TransfersWhatDidNotLearn, pretexts.the_loss_reaches_what_transfers),
        (HasNothingBeside, pretexts.the_score_stands_beside_chance),
    ],
)
def test_a_task_that_breaks_the_contract_is_caught(kind, check):
    check(PatchSwapping(**SWAPPING))
    with pytest.raises(AssertionError):
        check(kind(**SWAPPING))


def says_other_channels(backbone):
    backbone.encoder_channels = (4, 6, 9)


def says_other_strides(backbone):
    backbone.encoder_strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2))


def names_another_stem(backbone):
    backbone.stem_weight = "encoder.levels.0.2.weight"


def has_a_dead_parameter(backbone):
    backbone.encoder.unused = nn.Parameter(torch.ones(1))


def is_of_one_size_and_does_not_demand_it(backbone):
    backbone.input_size = (16, 32, 32)


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (says_other_channels, networks.the_encoder_is_described_as_it_is),
        (says_other_strides, networks.the_encoder_is_described_as_it_is),
        (names_another_stem, networks.the_encoder_is_described_as_it_is),
        (has_a_dead_parameter, networks.gradients_reach_every_parameter),
        (is_of_one_size_and_does_not_demand_it, networks.demands_fit_the_network),
    ],
)
def test_a_network_that_breaks_the_contract_is_caught(spoil, check, monkeypatch):
    def build(in_channels, patch_size, *, channels=(4, 6, 8)):
        backbone = build_unet(in_channels, patch_size, channels=channels)
        spoil(backbone)
        return backbone

    check(NetworkExample("unet", {"channels": (4, 6, 8)}))
    NETWORKS.names()
    monkeypatch.setitem(NETWORKS._entries, "spoilt", build)
    with pytest.raises(AssertionError):
        check(NetworkExample("spoilt", {"channels": (4, 6, 8)}))


@pytest.mark.parametrize("kind", [Mixes, ComparesOutputs])
def test_what_is_said_of_samples_that_meet_holds(kind):
    task = kind(**SWAPPING)
    shares.samples_meet_only_where_it_is_said(task)
    shares.losses_and_scores_are_those_of_the_whole_batch(task)
