"""Weights of ResEnc U-Nets: nnssl's (OpenMind) and nnU-Net's checkpoints, or a mapping with their names.

Their network registers every layer twice (``conv`` and ``all_modules.0``, ``norm`` and ``all_modules.1``) and
the encoder once more inside the decoder, so that a file has up to four names for a tensor. What runs is
``all_modules``: S3D's sparse training leaves the twins at their initial values. Their decoder counts its
levels from the coarsest one, ours from the finest, so that networks of other depths still match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from misfm.errors import WeightsError
from misfm.models import Backbone
from misfm.models.resenc import PRESET_L, ResEnc
from misfm.weights.containers import Origin, network_tensors, origin_of
from misfm.weights.file import NetworkInfo
from misfm.weights.formats import FORMATS, ForeignInfo, Translation
from misfm.weights.nnunet_model import read_labels

PAIRS = (
    ("encoder.stem.convs.0.", "backbone.encoder.stem."),
    ("encoder.stages.#.blocks.#.conv1.", "backbone.encoder.levels.#.#.conv1."),
    ("encoder.stages.#.blocks.#.conv2.", "backbone.encoder.levels.#.#.conv2."),
    ("encoder.stages.#.blocks.#.skip.1.", "backbone.encoder.levels.#.#.shortcut."),
    ("encoder.stages.#.blocks.#.skip.0.", "backbone.encoder.levels.#.#.shortcut."),  # where nothing is pooled
    ("decoder.stages.#.convs.#.", "backbone.decoder.levels.#.#."),
    ("decoder.transpconvs.#.", "backbone.decoder.ups.#."),
    ("decoder.seg_layers.#.", "head.levels.#."),
)
"""Their modules and ours; # is a number, and their decoder's levels are still to be counted backwards."""

LAYERS = ((".all_modules.0.", ".conv."), (".all_modules.1.", ".norm."))
WITH_DROPOUT = ".all_modules.2."  # the norm, where dropout lies between
RUNS = ".all_modules."
TWIN_ENCODER = "decoder.encoder."

FOREIGN_PARTS = {
    "squeeze_excitation": "squeeze and excitation",
    "running_mean": "batch norm",
    ".conv3.": "bottleneck blocks",
}
"""Part of a name -> what the network has that ours lacks."""


class ResEncFormat:
    """Reader of ResEnc's weights; see :class:`misfm.weights.formats.ForeignFormat`."""

    title = "ResEnc U-Net (nnssl, nnU-Net)"

    def tensors(self, content: Mapping[str, object]) -> dict[str, Tensor] | None:
        """Each tensor once, under the name of what runs."""
        state = network_tensors(content)
        names = {_canonical(name) for name in state}
        parts = ("encoder.stem.convs.0.", "encoder.stages.0.blocks.0.conv1.")
        if not all(any(name.startswith(part) for name in names) for part in parts):
            return None
        if any(name.startswith("decoder.stages.0.blocks.") for name in names):  # ResidualUNet
            return None
        return _once(state)

    def info(self, content: Mapping[str, object]) -> ForeignInfo:
        """Topology from shapes; the plan fills in the strides where there is no decoder to tell them."""
        origin = origin_of(content)
        tensors = self.tensors(content) or {}
        _check_supported(tensors)
        planned = _planned(origin)
        try:
            in_channels = tensors["encoder.stem.convs.0.all_modules.0.weight"].shape[1]
            options = _options(tensors, planned)
        except KeyError as error:
            raise WeightsError(f"These ResEnc weights are incomplete: they lack {error}.") from error
        finest = tensors.get(f"decoder.seg_layers.{len(options['channels']) - 2}.weight")
        num_classes = 1 if finest is None else len(finest)
        preset = options == _lists(PRESET_L)
        given = {**options, "in_channels": in_channels}
        labels = read_labels(content, num_classes)
        intensity: dict[str, Any] = {"kind": "mr"} if origin.z_scored else {}
        return ForeignInfo(
            network=NetworkInfo(name="resenc-l") if preset else NetworkInfo(name="resenc", options=options),
            in_channels=in_channels,
            num_classes=num_classes,
            patch_size=origin.patch_size,
            spacing=origin.spacing,
            **{"intensity": intensity, **labels},
            pretext=origin.pretext,
            recipe=origin.trainer,
            steps=origin.steps,
            transposed=origin.transposed,
            data=None,
            versions={},
            notes=tuple(_notes(network_tensors(content), planned, given)),
        )

    def translate(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> Translation:
        """Rename everything but pretext heads, counting the decoder's levels from the finest."""
        if not isinstance(backbone, ResEnc):
            return Translation(dict(tensors))
        num_outputs = _length(tensors, "decoder.transpconvs.#.")
        return Translation({_our_name(name, num_outputs): tensor for name, tensor in tensors.items()})


def reference_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a ``resenc`` under all names that nnU-Net's ``ResidualEncoderUNet`` has for it.

    Args:
        state: state dict of a model from :func:`misfm.models.create`, with its segmentation head or none.

    Returns:
        Name -> tensor, aliases sharing memory, fit for a strict load. nnU-Net always has outputs for deep
        supervision; those the model lacks are zero.
    """
    num_outputs = _length(state, "backbone.decoder.ups.#.")
    state = {**_missing_outputs(state, num_outputs), **state}
    named: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        theirs = _from_other_end(_renamed(ours, ((new, old) for old, new in PAIRS)), num_outputs)
        shortcut = re.match(r"encoder\.stages\.(\d+)\.blocks\.0\.skip\.", theirs)
        if shortcut:
            step = state[f"backbone.decoder.ups.{int(shortcut[1]) - 1}.weight"].shape[2:]
            theirs = theirs.replace(".skip.1.", ".skip.0.") if set(step) == {1} else theirs
        trees = ("", "decoder.") if theirs.startswith("encoder.") else ("",)
        for name in (theirs, _canonical(theirs)):
            named.update({tree + name: tensor for tree in trees})
    return named


def _missing_outputs(state: Mapping[str, Tensor], num_outputs: int) -> dict[str, Tensor]:
    """All levels of the head, zero; nothing where the state has no head."""
    finest = state.get("head.levels.0.weight")
    if finest is None:
        return {}
    widths = [len(state[f"backbone.decoder.ups.{level}.bias"]) for level in range(num_outputs)]
    weights = {
        f"head.levels.{level}.weight": finest.new_zeros(len(finest), width, 1, 1, 1)
        for level, width in enumerate(widths)
    }
    return weights | {
        f"head.levels.{level}.bias": finest.new_zeros(len(finest)) for level in range(num_outputs)
    }


def _canonical(name: str) -> str:
    """The name of what runs, of all that a tensor has."""
    if not name.startswith(("encoder.", "decoder.")):
        return name
    name = name.replace(TWIN_ENCODER, "encoder.").replace(WITH_DROPOUT, LAYERS[1][0])
    for layer, twin in LAYERS:
        name = name.replace(twin, layer)
    return name


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor by its canonical name; a twin stands in only in files that have no ``all_modules``."""
    runs = any(RUNS in name for name in state)
    kept: dict[str, Tensor] = {}
    for name in sorted(state, key=lambda name: name.startswith(TWIN_ENCODER)):
        canonical = _canonical(name)
        if not runs or RUNS in name or RUNS not in canonical:
            kept.setdefault(canonical, state[name])
    return kept


def _differing_twins(state: Mapping[str, Tensor]) -> set[str]:
    """Layers whose ``conv`` or ``norm`` holds other values than what runs."""
    return {
        _canonical(name).rpartition(".")[0]
        for name, tensor in state.items()
        if RUNS not in name and not torch.equal(state.get(_canonical(name), tensor), tensor)
    }


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """``name`` with its module replaced by the other of the first pair that fits."""
    for old, new in pairs:
        match = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if match:
            for number in match.groups():
                new = new.replace("#", number, 1)
            return new + name[match.end() :]
    return name


def _from_other_end(name: str, num_outputs: int) -> str:
    """Their name with the decoder's levels counted from the other end."""
    return re.sub(
        r"^(decoder\.(?:stages|transpconvs|seg_layers)\.)(\d+)",
        lambda match: f"{match[1]}{num_outputs - 1 - int(match[2])}",
        name,
    )


def _our_name(name: str, num_outputs: int) -> str:
    renamed = _renamed(_from_other_end(name, num_outputs), PAIRS)
    for layer, ours in LAYERS:
        renamed = renamed.replace(layer, ours)
    return renamed


def _length(names: Iterable[str], module: str) -> int:
    """How many numbers, from 0 on, stand in the place of # in names that start with ``module``."""
    pattern = re.compile(re.escape(module).replace(r"\#", r"(\d+)"))
    found = {int(match[1]) for match in map(pattern.match, names) if match}
    return sum(1 for _ in takewhile(found.__contains__, count()))


def _options(tensors: Mapping[str, Tensor], planned: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network that canonical ``tensors`` fit."""
    num_levels = _length(tensors, "encoder.stages.#.")
    num_outputs = _length(tensors, "decoder.transpconvs.#.")
    firsts = [f"encoder.stages.{level}.blocks.0" for level in range(num_levels)]
    kernels = [tensors[f"{first}.conv1.all_modules.0.weight"] for first in firsts]
    convs = {_length(tensors, f"decoder.stages.{level}.convs.#.") for level in range(num_outputs)} or {1}
    if len(convs) > 1:
        raise WeightsError("These ResEnc weights have decoder levels of different depth, unlike misfm's.")
    if num_outputs:  # a transposed kernel is as large as its step
        ups = reversed(range(num_levels - 1))
        strides = [list(tensors[f"decoder.transpconvs.{up}.weight"].shape[2:]) for up in ups]
    else:
        pooled = [f"{first}.skip.0.all_modules.0.weight" not in tensors for first in firsts[1:]]
        strides = planned.get("strides") or []
        if len(strides) != num_levels - 1:
            strides = [[2, 2, 2] if pool else [1, 1, 1] for pool in pooled]
    return {
        "channels": [len(kernel) for kernel in kernels],
        "blocks": [_length(tensors, f"encoder.stages.{level}.blocks.#.") for level in range(num_levels)],
        "strides": strides,
        "kernel_sizes": [list(kernel.shape[2:]) for kernel in kernels],
        "convs_per_level": convs.pop(),
    }


def _check_supported(tensors: Mapping[str, Tensor]) -> None:
    """Refuse relatives of the network that ours cannot be."""
    reasons = [what for part, what in FOREIGN_PARTS.items() if any(part in name for name in tensors)]
    stem = tensors.get("encoder.stem.convs.0.all_modules.0.weight")
    first = tensors.get("encoder.stages.0.blocks.0.conv1.all_modules.0.weight")
    if stem is not None and stem.dim() != 5:
        reasons.append("2D kernels")
    if stem is not None and first is not None and len(stem) != len(first):
        reasons.append("a stem of another width than its first level")
    if reasons:
        raise WeightsError(
            f"These are weights of a residual-encoder U-Net with {' and '.join(reasons)}, which misfm's "
            "'resenc' does not have; take weights of a 3D ResidualEncoderUNet with instance norm."
        )


def _planned(origin: Origin) -> dict[str, Any]:
    """Our options as the plan has them, and the image channels; only what it says in a form known here."""
    arguments = {key: _lists(value) for key, value in origin.architecture_options.items()}
    if not arguments and origin.architecture == "ResEncL":
        return {**{key: _lists(value) for key, value in PRESET_L.items()}, "in_channels": origin.in_channels}
    strides = _triples(arguments.get("strides"))
    if strides and strides[0] != [1, 1, 1]:
        raise WeightsError(
            "These ResEnc weights stride in their first level, so their masks are coarser than the scan; "
            "misfm's 'resenc' has no such level."
        )
    convs = arguments.get("n_conv_per_stage_decoder")
    return {
        "channels": arguments.get("features_per_stage"),
        "blocks": arguments.get("n_blocks_per_stage"),
        "strides": strides[1:] if strides else None,
        "kernel_sizes": _triples(arguments.get("kernel_sizes")),
        "convs_per_level": convs[0] if isinstance(convs, list) and len(set(convs)) == 1 else None,
        "in_channels": origin.in_channels,
    }


def _lists(value: Any) -> Any:
    """Tuples as lists, all the way down, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _triples(value: Any) -> list[list[int]] | None:
    """A number or three for each level, as three; None for anything else."""
    if not isinstance(value, list):
        return None
    triples = [[item] * 3 if isinstance(item, int) else item for item in value]
    return triples if all(isinstance(item, list) and len(item) == 3 for item in triples) else None


def _notes(state: Mapping[str, Tensor], planned: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    notes = []
    for key, value in planned.items():
        if value is not None and value != given[key]:
            notes.append(
                f"Its plan says {key} {value} and its tensors {given[key]}: the tensors were believed."
            )
    differing = _differing_twins(state)
    if differing:
        notes.append(
            f"{len(differing)} layers are stored twice with different values, as S3D's training leaves them; "
            "the trained copies (all_modules) were taken."
        )
    if not any(name.startswith("decoder.transpconvs.") for name in state):
        notes.append("It holds an encoder without a decoder.")
    return notes


FORMATS.register("resenc")(ResEncFormat())
