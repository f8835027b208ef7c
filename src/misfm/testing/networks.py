"""What every network must do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from misfm.errors import ConfigError
from misfm.models import NETWORKS, Backbone, SegmentationModel, create
from misfm.seeding import generator_for
from misfm.volume import Shape
from misfm.weights.adapt import POSITIONS

SIZE: Shape = (16, 32, 32)
ODD_SIZES: tuple[Shape, ...] = ((9, 20, 35), (17, 16, 30))
CHANNELS, CLASSES = 2, 3
WRONG_SIZES: tuple[dict[str, Any], ...] = (
    {"num_classes": 0},
    {"in_channels": 0},
    {"patch_size": (16, 32)},
    {"patch_size": (16, 0, 32)},
)
WRONG_NUMBERS: tuple[Any, ...] = (1.5, None, "a", [2])
WRONG_SEQUENCES: tuple[Any, ...] = (5, [16.5, 32], "abcde", [[1], 2])


@dataclass(frozen=True)
class NetworkExample:
    """A network as the checks build it: small, so that they are quick.

    Attributes:
        name: under which it is registered.
        options: of its builder, at least one.
        patch_sizes: voxels (D, H, W) of patches that it takes; those of :data:`ODD_SIZES` that are not among
            them it must refuse and name the nearest that it takes.
        wrong_options: each of them is to be refused, beside values of a wrong type for each of ``options``.
    """

    name: str
    options: Mapping[str, Any]
    patch_sizes: Sequence[Shape] = (SIZE, *ODD_SIZES)
    wrong_options: Sequence[Mapping[str, Any]] = ()

    def build(self, patch_size: Shape | None = None, *, seed: int = 0, **changes: Any) -> SegmentationModel:
        """Return it with random weights, by default for the first of its patch sizes."""
        torch.manual_seed(seed)
        arguments = {"in_channels": CHANNELS, "num_classes": CLASSES, **self.options, **changes}
        return create(self.name, patch_size=patch_size or self.patch_sizes[0], **arguments)

    def image(self, patch_size: Shape | None = None, batch_size: int = 2) -> Tensor:
        """A batch of patches (B, 2, D, H, W)."""
        shape = (batch_size, CHANNELS, *(patch_size or self.patch_sizes[0]))
        return torch.randn(shape, generator=generator_for("image"))


def refusal(call: Callable[[], object]) -> str:
    """The sentence of the ConfigError with which a call is refused."""
    try:
        call()
    except ConfigError as error:
        return str(error)
    raise AssertionError("this should have been refused with a ConfigError")


def has_decoder(model: SegmentationModel) -> bool:
    """Whether the decoder has parameters; it has none where the head leads from the coarsest features."""
    return any(True for _ in model.backbone.decoder.parameters())


@torch.no_grad()
def logits_have_the_shape_of_the_patch(example: NetworkExample) -> None:
    """Finite logits (B, K, D, H, W) for every patch size, and the patch stays as it was."""
    for patch_size in example.patch_sizes:
        x = example.image(patch_size)
        before = x.clone()
        logits = example.build(patch_size)(x)
        assert logits.shape == (2, CLASSES, *patch_size)
        assert bool(logits.isfinite().all())
        assert torch.equal(x, before)


def sizes_that_do_not_fit_are_refused(example: NetworkExample) -> None:
    """The message names the nearest size that works."""
    for patch_size in ODD_SIZES:
        if patch_size not in example.patch_sizes:
            assert "the nearest size that works is" in refusal(partial(example.build, patch_size))


@torch.no_grad()
def the_encoder_is_described_as_it_is(example: NetworkExample) -> None:
    """Channels and strides of its features, the weight that takes the image, and depths of its parameters."""
    for patch_size in example.patch_sizes:
        backbone = example.build(patch_size).backbone
        padded = [
            side + -side % divisor for side, divisor in zip(patch_size, backbone.min_divisor, strict=True)
        ]
        features = cast(list[Tensor], backbone.encoder(torch.zeros(2, CHANNELS, *padded)))
        assert backbone.in_channels == CHANNELS
        assert [feature.shape[1] for feature in features] == list(backbone.encoder_channels)
        for feature, strides in zip(features, backbone.encoder_strides, strict=True):
            assert [side * stride for side, stride in zip(feature.shape[2:], strides, strict=True)] == padded
        outputs = cast(list[Tensor], backbone.decoder(features))
        assert [output.shape[1] for output in outputs] == list(backbone.channels)
    wider = example.build(in_channels=CHANNELS + 1).backbone.state_dict()
    ours = backbone.state_dict()
    changed = [name for name in ours if ours[name].shape[1:] != wider[name].shape[1:]]
    assert [name for name in changed if not name.endswith(POSITIONS)] == [backbone.stem_weight]
    assert ours[backbone.stem_weight].shape[1] == CHANNELS
    depths = backbone.encoder_depths()
    assert list(depths) == [name for name, _ in backbone.encoder.named_parameters()]
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    assert depths[backbone.stem_weight.removeprefix("encoder.")] == 0


@torch.no_grad()
def deep_supervision_lists_logits_finest_first(example: NetworkExample) -> None:
    """In train and eval mode alike, one for each level of the decoder at its strides."""
    for patch_size in example.patch_sizes:
        for training in (True, False):
            model = example.build(patch_size, deep_supervision=True).train(training)
            outputs = model(example.image(patch_size))
            assert isinstance(outputs, list)
            assert len(outputs) == len(model.backbone.channels) == len(model.backbone.strides)
            assert outputs[0].shape[2:] == patch_size
            for output, strides in zip(outputs, model.backbone.strides, strict=True):
                sides = [-(-side // stride) for side, stride in zip(patch_size, strides, strict=True)]
                assert output.shape == (2, CLASSES, *sides)
            sizes = [output[0, 0].numel() for output in outputs]
            assert sizes == sorted(sizes, reverse=True)


@torch.no_grad()
def keeping_the_finest_output_changes_nothing_about_it(example: NetworkExample) -> None:
    """What deep supervision adds can be dropped, and a plain network takes what is left."""
    model = example.build(deep_supervision=True).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    finest = model(example.image())[0]
    assert torch.equal(model.keep_finest()(example.image()), finest)
    dropped = parameters - sum(parameter.numel() for parameter in model.parameters())
    assert (dropped == 0) is (len(model.backbone.channels) == 1)
    example.build(seed=1).load_state_dict(model.state_dict())


@torch.no_grad()
def a_state_dict_is_the_whole_model(example: NetworkExample) -> None:
    """Saved, read and loaded into another instance, it gives the same outputs."""
    model, other = example.build().eval(), example.build(seed=1).eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    expected = model(example.image())
    assert not torch.equal(other(example.image()), expected)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(example.image()), expected)


@torch.no_grad()
def predicting_is_deterministic_and_treats_samples_apart(example: NetworkExample) -> None:
    """In eval mode."""
    model, x = example.build().eval(), example.image()
    both = model(x)
    assert torch.equal(model(x), both)
    assert torch.allclose(model(x[1:]), both[1:], atol=1e-5)


def the_seed_decides_the_weights(example: NetworkExample) -> None:
    """The global one of torch."""
    first, same, other = (example.build(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def gradients_reach_every_parameter(example: NetworkExample) -> None:
    """In eval mode, since stochastic depth and dropout may switch a branch off for a step."""
    model = example.build(deep_supervision=True).eval()
    outputs = cast(list[Tensor], model(example.image()))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    dead = [name for name, grad in gradients.items() if grad is None or float(grad.abs().max()) == 0]
    assert dead == []


def the_parts_have_the_names_that_transfer_relies_on(example: NetworkExample) -> None:
    """Encoder and decoder within the backbone, and a head that alone depends on the classes."""
    model = example.build()
    assert isinstance(model.backbone, Backbone)
    parts = {key.split(".")[0] for key in model.backbone.state_dict()}
    assert parts == ({"encoder", "decoder"} if has_decoder(model) else {"encoder"})
    head = [key for key in model.state_dict() if key.startswith("head.")]
    more = example.build(num_classes=7).state_dict()
    assert head
    for key, value in model.state_dict().items():
        assert key in head or value.shape == more[key].shape


def training_mode_accepts_a_batch_of_one(example: NetworkExample) -> None:
    """With the first of its patch sizes."""
    x = example.image(batch_size=1)
    assert example.build().train()(x).shape == (1, CLASSES, *x.shape[2:])


@torch.no_grad()
def its_options_build_the_same_network_for_another_patch_size(example: NetworkExample) -> None:
    """They can be kept as JSON, and all weights but embeddings of positions fit."""
    model = example.build().eval()
    options = model.backbone.options
    assert json.loads(json.dumps(options)) == options
    assert example.options.keys() <= options.keys()
    d, h, w = example.patch_sizes[0]
    larger = example.build((2 * d, 2 * h, w), seed=1, **options)
    assert larger.backbone.strides == model.backbone.strides
    assert larger.backbone.options == options
    positions = {key: value for key, value in model.state_dict().items() if key.endswith(POSITIONS)}
    assert bool(positions) is (model.backbone.grid is not None)
    larger.load_state_dict(model.state_dict() | {key: larger.state_dict()[key] for key in positions})
    again = example.build(seed=2, **options).eval()
    again.load_state_dict(larger.state_dict() | positions)
    assert torch.equal(again(example.image()), model(example.image()))


def wrong_options_are_refused_in_a_sentence(example: NetworkExample) -> None:
    """Options of wrong types or values, options it does not have, and sizes that no network takes."""
    wrong_types = [
        {option: value}
        for option, right in example.options.items()
        for value in (WRONG_NUMBERS if isinstance(right, int) else WRONG_SEQUENCES)
    ]
    for wrong in [*example.wrong_options, *wrong_types]:
        message = refusal(partial(example.build, **wrong))
        assert "\n" not in message
        assert message.endswith(".")
    for wrong in WRONG_SIZES:
        assert "three positive sides" in refusal(partial(example.build, **wrong))
    option = next(iter(example.options))
    mistyped: dict[str, Any] = {option[:-1]: 4}
    assert f"did you mean '{option}'" in refusal(partial(example.build, **mistyped))


def a_network_of_fixed_size_says_so(example: NetworkExample) -> None:
    """A patch of another size than it was built for is refused with the size to build it for."""
    model = example.build()
    if model.backbone.input_size is not None:
        d, h, w = example.patch_sizes[0]
        image = example.image((d, h, 2 * w))
        assert f"patch_size={(d, h, 2 * w)}" in refusal(lambda: model(image))


def demands_fit_the_network(example: NetworkExample) -> None:
    """What patches are planned by: numbers, and whether weights are bound to a patch size."""
    demand = NETWORKS.demand(example.name)
    assert demand.saved > 0
    assert demand.multiple > 0
    assert demand.is_fixed is (example.build().backbone.input_size is not None)


NETWORK_CHECKS: tuple[Callable[[NetworkExample], None], ...] = (
    logits_have_the_shape_of_the_patch,
    sizes_that_do_not_fit_are_refused,
    the_encoder_is_described_as_it_is,
    deep_supervision_lists_logits_finest_first,
    keeping_the_finest_output_changes_nothing_about_it,
    a_state_dict_is_the_whole_model,
    predicting_is_deterministic_and_treats_samples_apart,
    the_seed_decides_the_weights,
    gradients_reach_every_parameter,
    the_parts_have_the_names_that_transfer_relies_on,
    training_mode_accepts_a_batch_of_one,
    its_options_build_the_same_network_for_another_patch_size,
    wrong_options_are_refused_in_a_sentence,
    a_network_of_fixed_size_says_so,
    demands_fit_the_network,
)
"""Each takes an example of a network and raises AssertionError where that breaks the contract."""
