"""Primus: published outputs, attention and rotations against obvious versions, order of tokens, refusals."""

import json
import math

import pytest
import torch
from golden_files import golden_file, kept, load_golden

import misfm.models
import misfm.weights
from misfm.errors import ConfigError
from misfm.models.eva import EvaBlock, RotaryAttention, rotary_table, rotate
from misfm.models.primus import PRESETS, PatchDecoder
from misfm.testing import NetworkExample

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PATCH = (16, 24, 40)
EXAMPLES = [
    NetworkExample(
        name,
        TINY,
        patch_sizes=[(16, 32, 32), (8, 24, 40)],
        wrong_options=[{"drop_path": "a"}, {"token_order": 1}],
    )
    for name in ("primus", *PRESETS)
]


def tiny(patch_size=PATCH, seed=0, **options):
    torch.manual_seed(seed)
    settings = {"num_classes": 3, **TINY, **options}
    return misfm.models.create("primus", patch_size=patch_size, **settings).eval()


@pytest.fixture
def shapes_only(monkeypatch):
    """Build networks of full size in no time: nothing is drawn, for lack of a place to draw it to."""
    for name in ("trunc_normal_", "kaiming_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, **_: tensor)
    with torch.device("meta"):
        yield


@torch.no_grad()
def largest_difference(output, expected):
    return float((output - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("order", "expected"), [("auto", "output.0"), ("whd", "output.0"), ("hwd", "output_legacy_hwd")]
)
@torch.no_grad()
def test_published_outputs_are_reproduced(order, expected):
    config = json.loads(golden_file("primus.json").read_text())["config"]
    tensors = load_golden(golden_file("primus.safetensors"))
    model = misfm.models.create(
        "primus",
        in_channels=config["input_channels"],
        num_classes=config["num_classes"],
        patch_size=config["input_shape"],
        embed_dim=config["embed_dim"],
        depth=config["eva_depth"],
        num_heads=config["eva_numheads"],
        token_order=order,
    ).eval()
    prefix = "state_dict."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    report = misfm.weights.load(model, state)
    assert report.reinitialised == []
    assert report.pretrained_parameters == report.num_parameters == 126_795
    assert [entry.name for entry in report.unused] == ["mask_token"]
    output = kept(model(tensors["input"]), tensors[expected])
    assert largest_difference(output, tensors[expected]) < 1e-5
    if order != "hwd":  # the published tokens are those of the other order
        encoder = model.backbone.encoder
        assert largest_difference(encoder.encode(encoder.embed(tensors["input"])), tensors["tokens"]) < 1e-5


@pytest.mark.usefixtures("shapes_only")
def test_parameters_of_the_published_configuration():
    model = misfm.models.create("primus-m", num_classes=2, patch_size=(160, 160, 160))
    assert sum(p.numel() for p in model.parameters()) == 152_021_402
    encoder = {name: p.numel() for name, p in model.backbone.encoder.named_parameters()}
    eva = {name: size for name, size in encoder.items() if not name.startswith("stem.")}
    assert (len(eva), sum(eva.values())) == (371, 150_554_304)
    assert len(model.state_dict()) == 384 - 1  # published: a mask token that is never used


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sizes_of_the_same_network(name):
    backbone = misfm.models.create(name, num_classes=2, patch_size=(16, 16, 16)).backbone
    sizes = {key: backbone.options[key] for key in ("embed_dim", "depth", "num_heads")}
    assert sizes == {key: getattr(PRESETS[name], key) for key in sizes}
    assert len(backbone.encoder.blocks) == sizes["depth"]
    assert backbone.encoder.head_dim in (66, 72)


@pytest.mark.parametrize(
    ("embed_dim", "num_classes", "widths"),
    [(864, 1, (112, 16)), (864, 2, (144, 24)), (864, 5, (192, 48)), (48, 3, (24, 16)), (24, 100, (48, 96))],
)
@pytest.mark.usefixtures("shapes_only")
def test_widths_of_the_patch_decoder(embed_dim, num_classes, widths):
    decoder = PatchDecoder(embed_dim, num_classes)
    convs = [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose3d)]
    assert [conv.out_channels for conv in convs] == [*widths, num_classes]


def test_rotary_table_by_hand():
    cos, sin = rotary_table((2, 3, 4), head_dim=12)
    assert cos.shape == (24, 6)
    place, token = (1, 2, 3), 1 * 12 + 2 * 4 + 3
    angles = torch.tensor([axis * frequency for axis in place for frequency in (1.0, 10_000**-0.5)])
    torch.testing.assert_close(cos[token], angles.cos())
    torch.testing.assert_close(sin[token], angles.sin())


def test_rotation_is_a_product_of_complex_numbers():
    table = rotary_table((2, 3, 4), head_dim=12)
    x = torch.randn(5, 24, 12)
    turned = torch.view_as_complex(x.unflatten(-1, (6, 2))) * torch.complex(*table)
    torch.testing.assert_close(rotate(x, table), torch.view_as_real(turned).flatten(-2))


@torch.no_grad()
def test_attention_equals_an_obvious_version():
    torch.manual_seed(0)
    module, table, x = RotaryAttention(24, num_heads=2), rotary_table((1, 2, 3), 12), torch.randn(2, 6, 24)
    mixed = torch.zeros_like(x)
    for sample in range(2):
        for head in (slice(0, 12), slice(12, 24)):
            query = rotate(module.q_proj(x)[sample, :, head], table)
            key = rotate(module.k_proj(x)[sample, :, head], table)
            scores = query @ key.T / math.sqrt(12)
            mixed[sample, :, head] = scores.softmax(-1) @ module.v_proj(x)[sample, :, head]
    torch.testing.assert_close(module(x, table), module.proj(module.norm(mixed)))


@torch.no_grad()
def test_swapping_the_axes_of_order_and_image_changes_nothing():
    """Read in the other order, the network is the same network on an image with two axes swapped."""
    swapped = tiny((24, 16, 40), token_order="hwd")
    plain = tiny((16, 24, 40), seed=1, token_order="whd")
    state = swapped.state_dict()
    stem = "backbone.encoder.stem.weight"
    plain.load_state_dict({**state, stem: state[stem].transpose(2, 3)})
    x = torch.randn(1, 1, 24, 16, 40)
    features = swapped.backbone(x)[0]
    assert features.shape == (1, 24, 3, 2, 5)
    torch.testing.assert_close(features.transpose(2, 3), plain.backbone(x.transpose(2, 3))[0])


@torch.no_grad()
def test_the_order_of_tokens_can_be_set_later():
    model, built = tiny(), tiny(token_order="hwd")
    x = torch.randn(1, 1, *PATCH)
    assert not torch.allclose(model(x), built(x))
    model.backbone.encoder.order_tokens("hwd")
    assert torch.equal(model(x), built(x))


def test_options_record_the_order_in_use():
    assert tiny().backbone.options["token_order"] == "whd"
    assert tiny(token_order="hwd").backbone.options["token_order"] == "hwd"


@torch.no_grad()
def test_kept_tokens_keep_their_places():
    """A corner of a large grid, alone, is a small grid: positions count from the corner."""
    large, small = tiny((16, 16, 32)).backbone.encoder, tiny((16, 16, 16), seed=1).backbone.encoder
    corner = torch.arange(2 * 2 * 4).view(2, 2, 4)[..., :2].flatten()
    state = large.state_dict()
    small.load_state_dict({**state, "pos_embed": state["pos_embed"][:, corner]})
    tokens = torch.randn(2, 16, 24)
    order = torch.stack([torch.randperm(8) for _ in range(2)])
    kept = large.encode(tokens, corner[order])
    expected = small.encode(tokens[:, corner])
    torch.testing.assert_close(kept, torch.stack([expected[i, order[i]] for i in range(2)]))


def test_the_decoder_is_empty_and_the_head_holds_the_way_up():
    model = tiny()
    assert list(model.backbone.decoder.parameters()) == []
    with torch.no_grad():
        features = model.backbone(torch.randn(2, 1, *PATCH))
    assert [feature.shape for feature in features] == [(2, 24, 2, 3, 5)]
    assert model.backbone.grid == (2, 3, 5)


def test_initial_weights():
    block = EvaBlock(48, num_heads=4)
    block.initialise(index=8)
    with torch.no_grad():
        assert block.mlp.fc1_g.weight.std() == pytest.approx(0.02, rel=0.1)
        assert block.mlp.fc2.weight.std() == pytest.approx(0.02 / 4, rel=0.1)
        assert block.attn.proj.weight.std() == pytest.approx(0.02 / 4, rel=0.1)
        assert not block.attn.q_proj.bias.any()
        assert block.gamma_1.tolist() == pytest.approx([0.1] * 48)


def test_drop_path_grows_with_depth():
    blocks = tiny(depth=5, drop_path=0.2).backbone.encoder.blocks
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_mixed_precision_stays_close():
    model, x = tiny(), torch.randn(1, 1, *PATCH)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
    mixed.float().sum().backward()
    assert largest_difference(mixed.float(), exact) < 0.05
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (15, 30, 47)}, r"the nearest size that works is \(16, 32, 48\)"),
        ({"patch_size": (2, 16, 16)}, r"the nearest size that works is \(8, 16, 16\)"),
        ({"embed_dim": 20}, "cannot share 20 channels among 2 heads"),
        ({"num_heads": 3}, "cannot share 24 channels among 3 heads"),
        ({"depth": 0}, "at least 1"),
        ({"drop_path": 1.0}, "below 1"),
        ({"token_order": "hwdc"}, "did you mean 'hwd'"),
        ({"tokenorder": "hwd"}, "did you mean 'token_order'"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)
