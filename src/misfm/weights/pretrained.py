"""A network straight from its weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from misfm.errors import ConfigError, WeightsError
from misfm.models import create
from misfm.weights.source import Source, open_source
from misfm.weights.transfer import load

UNRECORDED_PATCH_SIZE = (64, 128, 128)
"""Published patch size of MIS-FM, for files that do not record theirs."""


def from_pretrained(
    source: Source,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    patch_size: Sequence[int] | None = None,
) -> nn.Module:
    """Build the network that weights describe and fill it.

    Args:
        source: a weights file, a run folder, the name of published weights such as ``"builtin"``, an address
            ``"hf://owner/repo"``, or a mapping name -> tensor with the names of a known other project.
        num_classes: classes, background included, where they differ; the head is then fresh.
        in_channels: image channels where they differ; the stem is then adapted.
        patch_size: voxels (D, H, W); by default the recorded one, or 64 x 128 x 128 where none is.

    Raises:
        WeightsError: the source cannot be read, or does not say which network it belongs to, or describes
            none that can be built.
        ConfigError: the network cannot take the given sizes.
    """
    opened = open_source(source)
    info = opened.info
    if info is None:
        raise WeightsError(
            "A mapping with misfm's own names does not say which network it belongs to; build it with "
            "misfm.models.create and fill it with misfm.weights.load."
        )
    try:
        model = create(
            info.network.name,
            in_channels=in_channels or info.in_channels,
            num_classes=num_classes or info.num_classes,
            patch_size=patch_size or info.patch_size or UNRECORDED_PATCH_SIZE,
            **info.network.options,
        )
    except ConfigError as error:
        if (num_classes, in_channels, patch_size) != (None, None, None):
            raise
        raise WeightsError(f"{opened.label} describes a network that cannot be built: {error}") from error
    load(model, opened)
    return model
