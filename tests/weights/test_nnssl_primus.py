"""Weights of Primus from nnssl and nnU-Net: what plan, trainer and tensors tell, and the order of tokens."""

from itertools import product

import pytest
import torch
from golden_files import golden_file, load_golden, needs

import misfm.models
from misfm import weights
from misfm.errors import WeightsError
from misfm.models.primus import PRESETS
from misfm.weights.nnssl_primus import RENAMES

MAE, VOCO = (golden_file(f"ckpt_nnssl_primusm_{name}.pth") for name in ("mae", "voco"))
CASES = [
    *(pytest.param(MAE, case, marks=needs(MAE)) for case in ("same", "twochannel", "resized")),
    (VOCO, "resized"),
]

SIZE = {"embed_dim": 48, "depth": 3, "num_heads": 4}
PATCH = (32, 32, 32)


def network(seed=0, patch_size=PATCH, num_classes=2, **changes):
    torch.manual_seed(seed)
    options = {**SIZE, **changes}
    return misfm.models.create("primus", num_classes=num_classes, patch_size=patch_size, **options).eval()


def expected_of(path, case):
    prefix = f"{case}."
    tensors = load_golden(path.with_suffix(".expected.safetensors"))
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def fitting(image, **options):
    """A network for this image."""
    return network(in_channels=image.shape[1], patch_size=image.shape[2:], **options)


def published(model, *, prefix=""):
    """The state of a network under its published names."""
    state = {}
    for name, tensor in model.state_dict().items():
        theirs, ours = next((theirs, ours) for theirs, ours in RENAMES if name.startswith(ours))
        state[prefix + theirs + name.removeprefix(ours)] = tensor
    return {**state, f"{prefix}mask_token": torch.zeros(1, 1, 48)}


def checkpoint(path, state, trainer="BaseEvaMAETrainer", **plan):
    """A file as nnssl releases it."""
    configuration = {"patch_size": PATCH, "spacing": (1, 1, 1)}
    adaptation = {"pretrain_plan": {"configurations": {"onemmiso": configuration}}, **plan}
    content = {"network_weights": state, "trainer_name": trainer, "nnssl_adaptation_plan": adaptation}
    torch.save(content, path)
    return path


@torch.no_grad()
def features(model, image):
    return model.backbone(image)[0]


def close(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(("path", "case"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_published_features_are_reproduced_in_the_order_asked_for(path, case):
    expected = expected_of(path, case)
    model = fitting(expected["input"], token_order="whd")
    report = weights.load(model, path)
    assert close(features(model, expected["input"]), expected["features_whd"])
    encoder = model.backbone.encoder
    torch.testing.assert_close(encoder.stem.weight, expected["in_proj_weight"])
    torch.testing.assert_close(encoder.pos_embed, expected["pos_embed"])
    assert {entry.name.split(".")[0] for entry in report.reinitialised} == {"head"}
    assert "token_order='hwd' and this one has 'whd'" in str(report)


@pytest.mark.parametrize("order", ["auto", "hwd"])
@pytest.mark.parametrize(("path", "case"), [CASES[0], CASES[1], CASES[3]], ids=["same", "channels", "voco"])
def test_published_features_are_reproduced_in_the_order_of_training(path, case, order):
    expected = expected_of(path, case)
    model = fitting(expected["input"], token_order=order)
    report = weights.load(model, path)
    assert model.backbone.options["token_order"] == "hwd"
    assert "Warning" not in str(report)
    assert close(features(model, expected["input"]), expected["features_legacy_hwd"])


def converted_to_whd(state, grid):
    """Weights for the other order: position grid transposed, two thirds of each query and key swapped."""
    state = dict(state)
    positions = state["eva.pos_embed"]
    state["eva.pos_embed"] = positions.unflatten(1, grid).transpose(1, 2).flatten(1, 3)
    for block, name in product(range(SIZE["depth"]), ("q_proj.weight", "q_proj.bias", "k_proj.weight")):
        name = f"eva.blocks.{block}.attn.{name}"
        thirds = state[name].unflatten(0, (SIZE["num_heads"], 3, -1))
        state[name] = thirds[:, [1, 0, 2]].flatten(0, 2)
    return state


@pytest.mark.parametrize("patch_size", [(32, 32, 32), (32, 16, 48)])
def test_positions_are_resized_in_the_order_of_training(tmp_path, patch_size):
    """Undo the order, then resize: what weights converted for the plain order give.

    Upstream's ``resized.features_legacy_hwd`` is something else: it resizes as if the tokens were in the
    plain order, then hands them to a network that flattens a grid of other sides in the swapped one.
    """
    state = published(network(seed=1))
    path = checkpoint(tmp_path / "checkpoint.pth", state)
    swapped, plain = network(patch_size=patch_size), network(patch_size=patch_size, token_order="whd")
    weights.load(swapped, path)
    weights.load(plain, converted_to_whd(state, (4, 4, 4)))
    image = torch.randn(1, 1, *patch_size)
    assert close(features(swapped, image), features(plain, image))


def test_our_own_weights_keep_their_order_and_resize_in_it(tmp_path):
    path = checkpoint(tmp_path / "checkpoint.pth", published(network(seed=1)))
    model = network(patch_size=(32, 16, 48))
    weights.load(model, path)
    info = weights.WeightsInfo(
        network=weights.NetworkInfo(name="primus", options=model.backbone.options),
        in_channels=1,
        num_classes=2,
        patch_size=(32, 16, 48),
        spacing=None,
        steps=1,
        data=None,
    )
    own = tmp_path / "weights.safetensors"
    weights.save(own, model, info)
    again, image = weights.from_pretrained(own).eval(), torch.randn(1, 1, 32, 16, 48)
    assert torch.equal(features(again, image), features(model, image))

    # Of as many tokens, and yet another grid: D and H swapped, to which the same image is transposed.
    turned = network(patch_size=(16, 32, 48))
    report = weights.load(turned, own)
    assert [entry.how for entry in report.adapted] == ["position grid resized from 4x2x6 to 2x4x6"]
    assert turned.backbone.options["token_order"] == "hwd"
    grid = model.backbone.encoder.pos_embed.unflatten(1, (2, 4, 6)).permute(0, 4, 1, 2, 3)
    expected = torch.nn.functional.interpolate(grid, (4, 2, 6), mode="trilinear")
    ours = turned.backbone.encoder.pos_embed.unflatten(1, (4, 2, 6)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(ours, expected)


def test_an_own_state_dict_keeps_positions_whatever_the_grid():
    source, model = network(seed=1, patch_size=(16, 32, 64)), network(patch_size=(16, 32, 64))
    report = weights.load(model, source.state_dict())
    assert report.adapted == report.reinitialised == []
    assert torch.equal(model.backbone.encoder.pos_embed, source.backbone.encoder.pos_embed)


@pytest.mark.parametrize(
    ("trainer", "order"),
    [("BaseEvaMAETrainer_BS8", "hwd"), ("VolumeFusionEvaTrainer", "hwd"), ("SimMIMEvaTrainer_BS8", "whd")],
)
def test_the_trainer_tells_the_order(tmp_path, trainer, order):
    path = checkpoint(tmp_path / "checkpoint.pth", published(network()), trainer)
    assert weights.describe(path)["network"]["options"]["token_order"] == order
    assert weights.from_pretrained(path).backbone.options["token_order"] == order


def test_parts_that_only_some_methods_leave_tell_the_order_of_a_mapping():
    state = published(network())
    mae = state | {"decoder.blocks.0.gamma_1": torch.zeros(48)}
    orders = [
        weights.describe(mapping)["network"]["options"].get("token_order")
        for mapping in (state, mae, published(network(), prefix="encoder."))
    ]
    assert orders == [None, "hwd", "hwd"]
    assert "Nothing in it tells the order of its tokens" in str(weights.load(network(), state))


def test_a_failing_transfer_leaves_the_order(tmp_path):
    state = published(network())
    state["eva.norm.bias"] = torch.full((48,), torch.nan)
    path = checkpoint(tmp_path / "checkpoint.pth", state)
    model = network()
    with pytest.raises(WeightsError, match="undefined values"):
        weights.load(model, path)
    assert model.backbone.options["token_order"] == model.backbone.encoder.token_order == "whd"


def test_the_head_is_taken_where_it_fits_and_was_not_a_pretext(tmp_path):
    state = published(network(seed=1))
    path = checkpoint(tmp_path / "checkpoint.pth", state)
    assert weights.load(network(), state).reinitialised == []
    for model, source in ((network(), path), (network(num_classes=3), state)):
        report = weights.load(model, source)
        assert {entry.name.split(".")[0] for entry in report.reinitialised} == {"head"}


@needs(MAE)
def test_what_has_no_place_is_listed():
    unused = {entry.name for entry in weights.load(network(), MAE).unused}
    assert {"mask_token", "decoder.pos_embed", "decoder.norm.weight"} < unused
    unused = {entry.name for entry in weights.load(network(), VOCO).unused}
    assert unused == {"encoder.mask_token"} | {
        f"projector.layer{layer}.0.{kind}" for layer in (1, 2, 3) for kind in ("weight", "bias")
    }


def test_a_checkpoint_describes_itself():
    description = weights.describe(VOCO)
    assert description["network"] == {"name": "primus", "options": {**SIZE, "token_order": "hwd"}}
    fields = ("in_channels", "patch_size", "spacing", "pretext", "intensity", "recipe")
    expected = [1, [16, 16, 16], [1.0, 1.0, 1.0], "voco", {"kind": "mr"}, "VoCoEvaTrainer_BS8"]
    assert [description[field] for field in fields] == expected
    assert "Its plan says embed_dim 864 and its tensors 48" in str(weights.load(network(), VOCO))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_published_size_is_told_by_its_shapes(preset):
    width, depth = PRESETS[preset].embed_dim, PRESETS[preset].depth
    shapes = {
        "down_projection.proj.weight": (width, 1, 8, 8, 8),
        "eva.pos_embed": (1, 8000, width),
        **{f"eva.blocks.{block}.gamma_1": (width,) for block in range(depth)},
        "eva.blocks.0.attn.q_proj.weight": (width, width),
        "eva.blocks.0.attn.norm.weight": (width,),
        "eva.blocks.0.mlp.fc1_g.weight": (width * 8 // 3, width),
    }
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    description = weights.describe(state)
    assert description["network"]["name"] == preset
    assert description["network"]["options"]["num_heads"] == PRESETS[preset].num_heads
    assert description["patch_size"] == [160, 160, 160]


def test_the_plan_tells_the_heads_and_other_heads_are_warned_of(tmp_path):
    architecture = {"arch_class_name": "Primus", "arch_kwargs": {"embed_dim": 48, "eva_numheads": 8}}
    path = checkpoint(
        tmp_path / "checkpoint.pth", published(network(num_heads=8)), architecture_plans=architecture
    )
    assert weights.describe(path)["network"]["options"]["num_heads"] == 8
    assert weights.describe(path)["notes"] == []
    assert "num_heads=8 and this one has 4" in str(weights.load(network(), path))
    assert "num_heads" not in str(weights.load(network(num_heads=8), path))


def test_a_plan_of_another_form_is_refused_in_a_sentence(tmp_path):
    architecture = {"arch_class_name": ["CT", "MR"]}
    path = checkpoint(tmp_path / "checkpoint.pth", published(network()), architecture_plans=architecture)
    with pytest.raises(WeightsError, match=r"checkpoint\.pth .*got .list"):
        weights.describe(path)


def test_where_plan_and_tensors_disagree_the_tensors_are_believed_and_it_is_said(tmp_path):
    path = checkpoint(
        tmp_path / "checkpoint.pth",
        published(network(patch_size=(16, 16, 16))),
        pretrain_num_input_channels=3,
        pretrain_patch_size=[64, 64, 32],
    )
    description = weights.describe(path)
    assert (description["in_channels"], description["patch_size"]) == (1, [16, 16, 16])
    plan, _, patch = description["notes"]
    assert plan == "Its plan says in_channels 3 and its tensors 1: the tensors were believed."
    assert patch == (
        "Its plan says patches of (64, 64, 32) and its position embedding has 8 tokens: "
        "patches of (16, 16, 16) were assumed."
    )
    report = weights.load(network(), path)
    assert [entry.how for entry in report.adapted] == ["position grid resized from 2x2x2 to 4x4x4"]


def test_weights_that_cannot_be_ours_are_refused():
    state = published(network())
    incomplete = {name: tensor for name, tensor in state.items() if "attn.norm" not in name}
    coarse = {**state, "down_projection.proj.weight": torch.zeros(48, 1, 16, 16, 16)}
    narrow = {**state, "down_projection.proj.weight": torch.zeros(50, 1, 8, 8, 8)}
    for broken, message in (
        (incomplete, r"incomplete: they lack 'eva\.blocks\.0\.attn\.norm\.weight'"),
        (coarse, "a token of 8 voxels along each axis"),
        (narrow, "50 channels wide, which no number of heads can share"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights.load(network(), broken)
    unet = misfm.models.create("unet", num_classes=2, patch_size=PATCH)
    with pytest.raises(WeightsError, match=r"network 'primus'.* fit 0% of this UNet"):
        weights.load(unet, state)
