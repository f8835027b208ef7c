"""One function builds every network."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from misfm.errors import ConfigError
from misfm.memory import is_out_of_memory
from misfm.models.base import NETWORKS, SegmentationModel
from misfm.models.limits import MOST, check_options, check_patch, within_memory
from misfm.registry import closest
from misfm.volume import triple


def create(
    name: str,
    *,
    in_channels: int = 1,
    num_classes: int,
    patch_size: Sequence[int],
    deep_supervision: bool = False,
    **options: Any,
) -> SegmentationModel:
    """Build a network with random weights.

    Args:
        name: a registered network, such as ``"unet"`` or ``"pctnet"``.
        in_channels: channels of the image.
        num_classes: classes of the label map, background included.
        patch_size: voxels along (D, H, W) of the patches it will see.
        deep_supervision: return logits of every level, finest first, instead of the finest only.
        options: the network's own options; see its builder.

    Returns:
        A module that maps (B, in_channels, D, H, W) to logits (B, num_classes, D, H, W).

    Raises:
        ConfigError: unknown network or option (the nearest name is offered), an option of a wrong type or
            value, or a size it cannot take.
    """
    builder = NETWORKS.get(name)
    parameters = inspect.signature(builder).parameters
    allowed = [option for option in parameters if option not in ("in_channels", "patch_size")]
    for option in options:
        if option not in allowed:
            raise ConfigError(f"Network '{name}' has no option '{option}'; {closest(option, allowed)}")
    size = tuple(int(side) for side in patch_size)
    if len(size) != 3 or min(size) < 1 or not (0 < in_channels <= MOST and 0 < num_classes <= MOST):
        raise ConfigError(
            "A network needs a patch size of three positive sides and at least one channel and class, "
            f"{MOST:,} at most, got patch_size={size}, in_channels={in_channels}, num_classes={num_classes}."
        )
    check_patch(triple(size))
    defaults = {option: parameters[option].default for option in allowed}
    with within_memory(name):
        try:
            check_options(options)
            backbone = builder(in_channels=in_channels, patch_size=size, **options)
            # As JSON has them, for weights to write and read them back as they were.
            backbone.options = json.loads(json.dumps(defaults | options | backbone.options))
        except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"Network '{name}' cannot be built with the options {options}: {reason}."
            ) from error
        return SegmentationModel(backbone, num_classes, deep_supervision=deep_supervision)
