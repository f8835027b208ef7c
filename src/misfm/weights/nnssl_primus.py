"""Weights of Primus: nnssl's (OpenMind) and nnU-Net's checkpoints, or a mapping with their names.

Shapes tell width and depth, and the position embedding how many tokens there were. They tell neither the
number of attention heads nor the order of tokens: the first follows from the plan or the width, the second
from the trainer. Most of nnssl's trainers swap the first two axes of the grid, which its cubic patches hide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any, cast

from torch import Tensor

from misfm.errors import WeightsError
from misfm.models import Backbone
from misfm.models.eva import NUM_AXES
from misfm.models.primus import PRESETS, TOKEN_SIDE, Primus, TokenOrder
from misfm.settings import PositiveShape
from misfm.weights.adapt import source_grid
from misfm.weights.containers import Origin, network_tensors, origin_of
from misfm.weights.file import NetworkInfo
from misfm.weights.formats import FORMATS, ForeignInfo, Translation
from misfm.weights.nnunet_model import read_labels

ENCODER_ONLY = "encoder."
"""In front of the names where the pretext task has no decoder: VoCo, SimCLR, SwinUNETR."""

RENAMES = (
    ("down_projection.proj.", "backbone.encoder.stem."),
    ("eva.", "backbone.encoder."),
    ("up_projection.decode.", "head.levels.0."),
)
"""Start of their names -> ours. MAE's own ``decoder.``, mask tokens and projectors have no counterpart."""

HEAD_DIMS = (72, 66, 12, 6)
"""Channels of a head to expect in a width that was never published, the likeliest first."""


class PrimusFormat:
    """Reader of Primus's weights; see :class:`misfm.weights.formats.ForeignFormat`."""

    title = "Primus (nnssl, nnU-Net)"

    def tensors(self, content: Mapping[str, object]) -> dict[str, Tensor] | None:
        """The network's tensors under their own names."""
        tensors = network_tensors(content)
        return tensors if any(_bare(name).startswith("eva.") for name in tensors) else None

    def info(self, content: Mapping[str, object]) -> ForeignInfo:
        """Sizes from shapes; heads from plan or width; the order of tokens from the trainer."""
        origin = origin_of(content)
        stored = self.tensors(content) or {}
        notes: list[str] = []
        options, num_tokens = _options({_bare(name): tensor for name, tensor in stored.items()})
        _note_plan(origin, options, notes)
        in_channels = options.pop("in_channels")
        options["num_heads"] = _num_heads(options["embed_dim"], origin, notes)
        order = _token_order(stored, origin, notes)
        last = stored.get("up_projection.decode.2.bias")
        presets = [
            name
            for name, size in PRESETS.items()
            if options == {key: getattr(size, key) for key in ("embed_dim", "depth", "num_heads")}
        ]
        num_classes = 1 if last is None else len(last)
        intensity: dict[str, Any] = {"kind": "mr"} if origin.z_scored else {}
        return ForeignInfo(
            network=NetworkInfo(
                name=next(iter(presets), "primus"),
                options=options if order is None else {**options, "token_order": order},
            ),
            in_channels=in_channels,
            num_classes=num_classes,
            patch_size=_patch_size(num_tokens, origin, notes),
            spacing=origin.spacing,
            **{"intensity": intensity, **read_labels(content, num_classes)},
            pretext=origin.pretext or ("mae" if _of_mae(stored) else None),
            recipe=origin.trainer,
            steps=origin.steps,
            transposed=origin.transposed,
            data=None,
            versions={},
            notes=tuple(notes),
        )

    def translate(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> Translation:
        """Rename what encoder and head have; the position embedding stays in its own order of tokens."""
        if not isinstance(backbone, Primus):
            return Translation(dict(tensors))
        return Translation({_our_name(name): tensor for name, tensor in tensors.items()})


def _bare(name: str) -> str:
    return name.removeprefix(ENCODER_ONLY)


def _our_name(name: str) -> str:
    for theirs, ours in RENAMES:
        if _bare(name).startswith(theirs):
            return ours + _bare(name).removeprefix(theirs)
    return name


def _of_mae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is the small transformer that restores dropped tokens."""
    return any(name.startswith("decoder.blocks.") for name in tensors)


def _options(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Width, depth and image channels, and the number of tokens.

    Raises:
        WeightsError: incomplete, or of a relative that ours cannot be.
    """
    try:
        stem, positions = tensors["down_projection.proj.weight"], tensors["eva.pos_embed"]
        for name in ("gamma_1", "attn.q_proj.weight", "attn.norm.weight", "mlp.fc1_g.weight"):
            tensors[f"eva.blocks.0.{name}"]
    except KeyError as error:
        raise WeightsError(f"These Primus weights are incomplete: they lack {error}.") from error
    if stem.shape[2:] != (TOKEN_SIDE,) * NUM_AXES or positions.dim() != 3:
        raise WeightsError(
            f"These Primus weights have a stem of shape {tuple(stem.shape)} and positions of shape "
            f"{tuple(positions.shape)}; misfm's Primus makes a token of {TOKEN_SIDE} voxels along each axis."
        )
    blocks = {match[1] for match in (re.match(r"eva\.blocks\.(\d+)\.", name) for name in tensors) if match}
    options = {"embed_dim": len(stem), "depth": len(blocks), "in_channels": stem.shape[1]}
    return options, positions.shape[1]


def _note_plan(origin: Origin, options: Mapping[str, Any], notes: list[str]) -> None:
    """Note where the plan says something else than the tensors."""
    arguments = origin.architecture_options
    size = PRESETS.get(re.sub(r".*\bPrimus(.)$", r"primus-\1", origin.architecture or "").lower())
    planned = {
        "embed_dim": arguments.get("embed_dim", size and size.embed_dim),
        "depth": _argument(arguments, "eva_depth") or (size and size.depth),
        "in_channels": origin.in_channels,
    }
    for key, value in planned.items():
        if value not in (None, options[key]):
            notes.append(
                f"Its plan says {key} {value} and its tensors {options[key]}: the tensors were believed."
            )


def _argument(arguments: Mapping[str, Any], name: str) -> Any:
    """What a plan calls ``name``, or by a newer name that tells the encoder from a decoder."""
    return arguments.get(name, arguments.get(f"encoder_{name}"))


def _num_heads(embed_dim: int, origin: Origin, notes: list[str]) -> int:
    """Those of the plan, else of the published size of that width, else by :data:`HEAD_DIMS`.

    Raises:
        WeightsError: a width that no number of heads divides.
    """
    planned = _argument(origin.architecture_options, "eva_numheads")
    if isinstance(planned, int) and planned > 0 and embed_dim % (2 * NUM_AXES * planned) == 0:
        return planned
    for size in PRESETS.values():
        if size.embed_dim == embed_dim:
            return size.num_heads
    head_dim = next((head_dim for head_dim in HEAD_DIMS if embed_dim % head_dim == 0), None)
    if head_dim is None:
        raise WeightsError(
            f"These Primus weights are {embed_dim} channels wide, which no number of heads can share: each "
            f"needs a multiple of {2 * NUM_AXES}."
        )
    notes.append(
        f"Nothing in it tells the number of attention heads: {embed_dim // head_dim} of {head_dim} channels "
        "were assumed."
    )
    return embed_dim // head_dim


def _token_order(tensors: Mapping[str, Tensor], origin: Origin, notes: list[str]) -> TokenOrder | None:
    """The order recognised by the trainer, or without one by parts that only some pretext tasks leave."""
    trainer = (origin.trainer or "").lower()
    if "simmim" in trainer:
        return "whd"
    swapped = _of_mae(tensors) or not any(name.startswith("eva.") for name in tensors)
    if "eva" in trainer or (not trainer and swapped):
        return "hwd"
    notes.append(
        "Nothing in it tells the order of its tokens, and 'whd' is the usual one; those of nnssl's trainers "
        'need a network with token_order="hwd", but for SimMIM.'
    )
    return None


def _patch_size(num_tokens: int, origin: Origin, notes: list[str]) -> PositiveShape | None:
    """The plan's where the position embedding has as many tokens, else the cube that has."""
    planned = origin.patch_size
    grid = planned and cast(PositiveShape, tuple(side // TOKEN_SIDE for side in planned))
    if planned and grid and prod(grid) == num_tokens:
        return planned
    cube = source_grid(num_tokens, None)
    size = cube and cast(PositiveShape, tuple(side * TOKEN_SIDE for side in cube))
    if planned:
        notes.append(
            f"Its plan says patches of {planned} and its position embedding has {num_tokens} tokens: "
            f"{f'patches of {size} were' if size else 'no patch size was'} assumed."
        )
    return size


FORMATS.register("primus")(PrimusFormat())
