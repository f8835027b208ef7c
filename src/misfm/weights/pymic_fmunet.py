"""Weights of FMUNet, as PyMIC saves them or as a plain mapping with the same names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from misfm.models import Backbone
from misfm.models.fmunet import FMUNet
from misfm.weights.file import NetworkInfo, WeightsInfo
from misfm.weights.formats import FORMATS, Translation
from misfm.weights.pymic_pctnet import described, stored_tensors, told_by_shapes

MARK = "encoder.en_conv0."
RENAMES = (
    (re.compile(r"project\."), r"backbone.encoder.project."),
    (re.compile(r"encoder\.en_conv(\d)\.conv_list\."), r"backbone.encoder.levels.\1.units."),
    (re.compile(r"encoder\.down(\d)\.down\."), r"backbone.encoder.downs.\1."),
    (re.compile(r"decoder\.de_conv(\d)\.conv_list\."), r"backbone.decoder.levels.\1.units."),
    (re.compile(r"decoder\.upcat(\d)\.up\."), r"backbone.decoder.narrows.\1."),
    (re.compile(r"decoder\.upcat(\d)\.conv\."), r"backbone.decoder.merges.\1."),
    (re.compile(r"out_layers\."), r"head.levels."),
)
"""Start of their names -> ours; the layers within a module are numbered alike."""


class PymicFMUNet:
    """Reader of FMUNet's weights; see :class:`misfm.weights.formats.ForeignFormat`."""

    title = "MIS-FM FMUNet (PyMIC)"

    def tensors(self, content: Mapping[str, object]) -> dict[str, Tensor] | None:
        """The state dict of a checkpoint, or a mapping with its names."""
        tensors = stored_tensors(content)
        return tensors if any(name.startswith(MARK) for name in tensors) else None

    def info(self, content: Mapping[str, object]) -> WeightsInfo:
        """Everything from shapes, for the file records no setting."""
        tensors = cast(dict[str, Tensor], self.tensors(content))
        with told_by_shapes("FMUNet"):
            network = NetworkInfo(name="fmunet", options=_options(tensors))
            return described(network, tensors["project.weight"], tensors["out_layers.0.2.bias"], content)

    def translate(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> Translation:
        """Rename everything; kernels of another anisotropy keep their shape."""
        if not isinstance(backbone, FMUNet):
            return Translation(dict(tensors))
        return Translation({_rename(name): tensor for name, tensor in tensors.items()})


def _options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of the network that ``tensors`` fit."""
    widths, depths = [], []
    for level in range(5):
        width, _, depth, _, _ = tensors[f"encoder.en_conv{level}.conv_list.0.3.weight"].shape
        widths.append(width)
        depths.append(depth)
    units = re.compile(re.escape(MARK) + r"conv_list\.\d+\.3\.weight")
    return {
        "channels": tuple(widths),
        "depth": sum(units.fullmatch(name) is not None for name in tensors),
        "anisotropy": depths[:2].count(1),
    }


def _rename(name: str) -> str:
    for theirs, ours in RENAMES:
        if theirs.match(name):
            return theirs.sub(ours, name, count=1)
    return name


FORMATS.register("pymic-fmunet")(PymicFMUNet())
