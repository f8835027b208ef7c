"""PCT-Net: published outputs, the attention against an obvious version of it, shapes and refusals."""

import json
import math

import pytest
import torch
from golden_files import golden_file, load_golden
from torch import nn

import misfm.models
import misfm.weights
from misfm.errors import ConfigError
from misfm.models.swin import SwinBlock, WindowAttention, WindowSettings, lay_out, relative_position_index
from misfm.testing import NetworkExample
from misfm.training.precision import exact_convolutions

TINY = {"channels": (4, 4, 6, 8, 12), "num_heads": (2, 2, 3), "window_sizes": (3, 2, 2)}
EXAMPLES = [
    NetworkExample(
        "pctnet",
        TINY,
        patch_sizes=[(16, 32, 32), (8, 48, 16)],
        wrong_options=[
            {"dropout": "a"},
            {"window_sizes": [2.5, 2, 2]},
            {"depths": None},
            {"anisotropy": 1.0},
        ],
    )
]
DIVISORS = {0: (16, 16, 16), 1: (8, 16, 16), 2: (4, 16, 16)}


def tiny(patch_size=(16, 32, 32), **options):
    torch.manual_seed(0)
    settings = {"num_classes": 3, "deep_supervision": True, **TINY, **options}
    return misfm.models.create("pctnet", patch_size=patch_size, **settings)


def golden(name, **changes):
    """The published network with the weights of a fixture, its input and its outputs."""
    if not golden_file(f"{name}.safetensors").exists():
        pytest.skip("the golden files are not beside this repository")
    config = json.loads(golden_file(f"{name}.json").read_text())["config"]
    tensors = load_golden(golden_file(f"{name}.safetensors"))
    options = {
        "channels": config["feature_chns"],
        "depths": config["depths"],
        "num_heads": config["num_heads"],
        "window_sizes": config["window_sizes"],
        "anisotropy": config["resolution_mode"],
        "dropout": 0.2,
        "position_index": "mis-fm",
    }
    model = misfm.models.create(
        "pctnet",
        in_channels=config["in_chns"],
        num_classes=config["class_num"],
        patch_size=config["input_size"],
        deep_supervision=True,
        **{**options, **changes},
    )
    prefix = "state_dict."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return model, state, tensors["input"], [tensors[f"output.{level}"] for level in range(4)]


def largest_difference(outputs, expected):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", ["pctnet_mode0", "pctnet_mode1"])
def test_published_outputs_are_reproduced(name):
    model, state, image, expected = golden(name)
    report = misfm.weights.load(model, state)
    assert report.reinitialised == []
    assert report.pretrained_parameters == report.num_parameters
    with torch.no_grad():
        assert largest_difference(model.eval()(image), expected) < 1e-5


@pytest.mark.parametrize("name", ["pctnet_mode0", "pctnet_mode1"])
def test_published_outputs_depend_on_every_quirk(name):
    model, state, image, expected = golden(name)
    misfm.weights.load(model, state)
    textbook, *_ = golden(name, position_index="textbook")
    textbook.load_state_dict(model.state_dict())
    unmasked, *_ = golden(name)
    unmasked.load_state_dict(model.state_dict())
    for attention in unmasked.modules():
        if isinstance(attention, WindowAttention):
            attention.masks.zero_()
    with torch.no_grad():
        for changed in (textbook, unmasked):
            assert largest_difference(changed.eval()(image), expected) > 1e-3


def attention_by_the_book(module, x, grid, side, shift, index):
    """Pad, roll, and let each token look at each token of its window, one window after the other."""
    batch, _, channels = x.shape
    padding = [-n % side for n in grid]
    padded = torch.zeros(batch, *[n + p for n, p in zip(grid, padding, strict=True)], channels)
    padded[:, : grid[0], : grid[1], : grid[2]] = x.view(batch, *grid, channels)
    rolled = padded.roll((-shift,) * 3, dims=(1, 2, 3))
    result = torch.zeros_like(rolled)
    heads, width = module.num_heads, channels // module.num_heads

    def region(point):  # which side of the seam a point of the rolled grid comes from
        sides = zip(point, rolled.shape[1:4], strict=True)
        return tuple(0 if p < n - side else 1 if p < n - shift else 2 for p, n in sides)

    for corner in torch.cartesian_prod(*(torch.arange(0, n, side) for n in rolled.shape[1:4])).tolist():
        points = (torch.cartesian_prod(*[torch.arange(side)] * 3) + torch.tensor(corner)).tolist()
        d, h, w = (torch.tensor(axis) for axis in zip(*points, strict=True))
        query, key, value = module.qkv(rolled[:, d, h, w]).view(batch, -1, 3, heads, width).unbind(2)
        scores = torch.einsum("bihc,bjhc->bhij", query, key) / math.sqrt(width)
        scores = scores + module.bias_table[index].permute(2, 0, 1)
        if shift:
            regions = [region(point) for point in points]
            scores = scores + torch.tensor([[0.0 if a == b else -100.0 for b in regions] for a in regions])
        result[:, d, h, w] = torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), value).flatten(2)
    unrolled = result.roll((shift,) * 3, dims=(1, 2, 3))[:, : grid[0], : grid[1], : grid[2]]
    return module.proj(unrolled.reshape(batch, -1, channels))


@pytest.mark.parametrize("kind", ["textbook", "mis-fm"])
@pytest.mark.parametrize(
    ("grid", "window", "shifted"), [((4, 5, 6), 3, True), ((4, 5, 6), 3, False), ((2, 5, 3), 4, True)]
)
def test_attention_equals_an_obvious_version(grid, window, shifted, kind):
    torch.manual_seed(0)
    settings = WindowSettings(grid, window, num_heads=2, position_index=kind)
    module = WindowAttention(8, settings, shifted=shifted)
    nn.init.normal_(module.bias_table)
    x = torch.randn(2, math.prod(grid), 8)
    shift = settings.shift if shifted else 0
    index = relative_position_index(settings.side, kind)
    with torch.no_grad():
        expected = attention_by_the_book(module, x, grid, settings.side, shift, index)
        torch.testing.assert_close(module(x), expected)


def test_layout_brings_every_token_back_to_its_place():
    layout = lay_out((5, 4, 7), side=3, shift=1)
    tokens = torch.arange(5 * 4 * 7)
    assert torch.equal(layout.to_windows[layout.to_tokens], tokens)
    assert sum(layout.counts) * 27 == len(layout.to_windows) == 6 * 6 * 9
    assert len(layout.masks) == len(layout.counts) == 8
    assert set(layout.masks.unique().tolist()) == {0.0, -100.0}


def test_position_index_of_textbook_is_unique_per_offset_and_of_mis_fm_is_not():
    textbook, published = (relative_position_index(6, kind) for kind in ("textbook", "mis-fm"))
    assert textbook.unique().numel() == 11**3
    assert published.unique().numel() == published.max() + 1 == 291
    assert textbook[0, -1] == 0
    assert textbook[-1, 0] == 11**3 - 1
    assert published[-1, 0] == 10 * 17 + 10 * 11 + 10


@pytest.mark.parametrize("anisotropy", [0, 1, 2])
def test_deep_supervision_lists_levels_finest_first(anisotropy):
    patch_size = tuple(2 * n for n in DIVISORS[anisotropy])
    model = tiny(patch_size, anisotropy=anisotropy, in_channels=2).eval()
    backbone = model.backbone
    assert backbone.input_size == patch_size
    with torch.no_grad():
        outputs = model(torch.randn(1, 2, *patch_size))
    expected = [
        tuple(n // s for n, s in zip(patch_size, strides, strict=True)) for strides in backbone.strides
    ]
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *shape) for shape in expected]
    finest = tiny(patch_size, anisotropy=anisotropy, in_channels=2, deep_supervision=False)
    assert len(finest.head.levels) == 1


def test_in_plane_levels_do_not_mix_slices():
    stem = tiny((8, 32, 32), anisotropy=2).backbone.encoder.eval()
    x = torch.randn(1, 1, 8, 32, 32)
    changed = x.clone()
    changed[:, :, 0] += 1
    with torch.no_grad():
        difference = (
            (stem.conv0(stem.project(x)) - stem.conv0(stem.project(changed))).abs().amax(dim=(0, 1, 3, 4))
        )
    assert difference[0] > 0
    assert difference[1:].max() == 0


@pytest.mark.parametrize("patch_size", [(8, 16, 48), (24, 48, 16), (40, 16, 80)])
def test_odd_but_allowed_sizes(patch_size):
    model = tiny(patch_size, deep_supervision=False).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, *patch_size)).shape == (1, 3, *patch_size)


def test_eval_is_deterministic_and_training_drops():
    model, x = tiny(), torch.randn(2, 1, 16, 32, 32)
    with torch.no_grad():
        first, again = model.eval()(x)[0], model(x)[0]
        assert torch.equal(first, again)
        model.train()
        assert not torch.equal(model(x)[0], model(x)[0])
        torch.manual_seed(1)
        one = model(x)[0]
        torch.manual_seed(1)
        assert torch.equal(one, model(x)[0])


def test_mixed_precision_stays_close():
    model, x = tiny((16, 32, 32), deep_supervision=False).eval(), torch.randn(1, 1, 16, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_convolutions(x.device):
        mixed = model(x)
    mixed.float().sum().backward()
    assert (mixed.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_drop_path_leaves_out_a_fifth_of_the_branches():
    torch.manual_seed(0)
    block = SwinBlock(4, WindowSettings((2, 2, 2), 2, num_heads=1), shifted=False).train()
    x = torch.randn(1, 8, 4).expand(500, 8, 4)
    results = block(x)
    assert len(results.unique(dim=0)) == 4  # without either branch, with one of them, with both
    assert (results == x).flatten(1).all(1).float().mean() == pytest.approx(0.2**2, abs=0.03)


def published_size(anisotropy):
    """Parameters of the published configuration: all, and those of levels 0 and 1."""
    with torch.device("meta"):
        model = misfm.models.create(
            "pctnet", num_classes=5, patch_size=(64, 128, 128), deep_supervision=True, anisotropy=anisotropy
        )
    levels_0_and_1 = ("project", "conv0", "down1", "conv1", "down2", "up0", "up1", "levels.0", "levels.1")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    finest = [n for name, n in sizes.items() if any(f".{part}." in f".{name}" for part in levels_0_and_1)]
    return sum(sizes.values()), sum(finest)


def test_parameters_of_the_published_configuration():
    """Ours are those that run; the published network stores three stems and heads, and a norm a block."""
    sizes = [published_size(anisotropy) for anisotropy in range(3)]
    assert sizes[1][0] == 44_198_206
    norms_never_applied = 2 * (2 * 128 + 2 * 256 + 512)
    finest_of_all = sum(finest for _, finest in sizes)
    stored = [total - finest + finest_of_all + norms_never_applied for total, finest in sizes]
    assert stored == [45_257_938, 45_289_554, 45_289_554]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (15, 30, 47)}, r"the nearest size that works is \(16, 32, 48\)"),
        ({"patch_size": (2, 16, 16)}, r"the nearest size that works is \(8, 16, 16\)"),
        ({"anisotropy": 3}, "0, 1 or 2"),
        ({"channels": (4, 4, 6, 8)}, "five channels"),
        ({"num_heads": (4, 2, 3)}, "cannot share 6 channels among 4 heads"),
        ({"window_sizes": (0, 2, 2)}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"position_index": "misfm"}, "did you mean 'mis-fm'"),
        ({"windowsizes": (2, 2, 2)}, "did you mean 'window_sizes'"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)
