"""The blocks of a network: what a training that is short of memory computes twice instead of keeping."""

from __future__ import annotations

from torch import nn

from misfm.models.base import Backbone
from misfm.models.heads import SegmentationHead


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model of several layers each, none within another, in order of definition.

    Encoders, decoders, heads and lists of blocks are opened; single layers, whose inputs have to be kept
    anyway, are left out.
    """
    opened: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Backbone):
            opened |= {module, module.encoder, module.decoder}
    return _blocks(model, opened)


def _blocks(module: nn.Module, opened: set[nn.Module]) -> list[nn.Module]:
    found = []
    for child in module.children():
        if child in opened or _is_list(child):
            found += _blocks(child, opened)
        elif _is_composite(child):
            found.append(child)
    return found


def _is_list(module: nn.Module) -> bool:
    """Whether a module only holds others, or calls composite ones in turn."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | SegmentationHead):
        return True
    return type(module) is nn.Sequential and all(_is_composite(child) for child in module)


def _is_composite(module: nn.Module) -> bool:
    return any(True for _ in module.children())
