"""What lies around the tensors of a checkpoint."""

import pytest
import torch

from misfm.weights.containers import Origin, network_tensors, origin_of


@pytest.mark.parametrize(
    "name",
    [
        *("module._orig_mod.a.weight", "_orig_mod.module.a.weight", "module.module.a.weight"),
        *("a._orig_mod.weight", "module._fsdp_wrapped_module._orig_mod.a._checkpoint_wrapped_module.weight"),
    ],
)
def test_tensors_come_without_what_wraps_them(name):
    tensor = torch.ones(1)
    assert network_tensors({"network_weights": {name: tensor, "b": "no tensor"}}) == {"a.weight": tensor}


def test_a_layer_may_be_called_module():
    tensor = torch.ones(1)
    assert network_tensors({"a.module.weight": tensor}) == {"a.module.weight": tensor}


def test_a_mapping_says_nothing_about_itself():
    assert origin_of({"a.weight": torch.ones(1)}) == Origin()


def test_without_a_trainer_no_pretext_is_made_up():
    origin = origin_of({"network_weights": {}})
    assert (origin.project, origin.trainer, origin.pretext) == ("nnssl", None, None)


def test_the_first_configuration_counts_whatever_its_name():
    plan = {"configurations": {"onemmiso": {"patch_size": [8, 8, 8], "spacing": (1, 1, 1)}}}
    content = {
        "network_weights": {},
        "trainer_name": "SimMIMEvaTrainer_BS8",
        "init_args": {"configuration_name": "3d_fullres"},
        "nnssl_adaptation_plan": {"pretrain_plan": plan},
    }
    origin = origin_of(content)
    assert (origin.patch_size, origin.spacing, origin.pretext) == ((8, 8, 8), (1.0, 1.0, 1.0), "simmim")


def test_nnunet_names_its_configuration_and_lets_it_inherit():
    configurations = {
        "2d": {"patch_size": [8, 8]},
        "base": {
            "patch_size": [8, 8, 8],
            "spacing": [2, 1, 1],
            "normalization_schemes": ["ZScoreNormalization"],
        },
        "fine": {"inherits_from": "base", "spacing": [1, 1, 1]},
    }
    content = {
        "network_weights": {},
        "trainer_name": "nnUNetTrainer",
        "current_epoch": 4,
        "init_args": {"plans": {"configurations": configurations}, "configuration": "fine"},
    }
    origin = origin_of(content)
    assert (origin.project, origin.pretext, origin.steps) == ("nnU-Net", None, 1000)
    assert (origin.patch_size, origin.spacing, origin.z_scored) == ((8, 8, 8), (1.0, 1.0, 1.0), True)
    content["init_args"]["plans"]["transpose_forward"] = [0, 1, 2]
    assert origin_of(content) == origin


def test_transposed_axes_are_noticed():
    content = {"network_weights": {}, "init_args": {"plans": {"transpose_forward": [2, 0, 1]}}}
    assert origin_of(content).transposed
