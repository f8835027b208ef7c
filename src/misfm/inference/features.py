"""What a pretrained encoder makes of a scan, as one vector: those of scans that look alike are near."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfm.errors import ConfigError
from misfm.inference.sliding_window import pad_to_window, window_starts
from misfm.models import Backbone
from misfm.pretext.embedding import encode
from misfm.volume import Shape

MOST_WINDOWS = 27
"""Of larger scans so many windows are looked at, spread evenly."""


def embed(backbone: Backbone, image: Tensor, window: Shape) -> NDArray[np.float64]:
    """Return mean and standard deviation of every feature of the encoder, over windows side by side.

    Args:
        backbone: in eval mode. One that takes a single channel looks at the channels one by one, and their
            vectors are joined.
        image: (C, D, H, W), normalised.
        window: voxels along (D, H, W).

    Returns:
        (F,), F twice the channels of all encoder features (times C where channels are looked at one by one).

    Raises:
        ConfigError: the encoder takes several channels, and the image has another number.
    """
    if len(image) != backbone.in_channels:
        if backbone.in_channels != 1:
            raise ConfigError(
                f"The scans have {len(image)} channel(s) and the network takes {backbone.in_channels}; give "
                "weights that were trained on such scans, or builtin."
            )
        return np.concatenate([embed(backbone, channel[None], window) for channel in image])
    padded, _ = pad_to_window(image.float(), window)
    sides = zip(padded.shape[1:], window, strict=True)
    corners = list(product(*(window_starts(side, size, 0) for side, size in sides)))
    picked = np.unique(np.linspace(0, len(corners) - 1, min(len(corners), MOST_WINDOWS)).round().astype(int))
    device = next(backbone.parameters()).device
    moments = [
        _moments(backbone, padded[:, d : d + window[0], h : h + window[1], w : w + window[2]].to(device))
        for d, h, w in (corners[i] for i in picked)
    ]
    means, squares = torch.stack(moments).mean(dim=0).double().cpu().numpy()
    deviations: NDArray[Any] = np.sqrt(np.maximum(squares - means**2, 0))
    return np.concatenate([means, deviations])


@torch.no_grad()
def _moments(backbone: Backbone, patch: Tensor) -> Tensor:
    """Mean and mean square (2, F) of each feature of a patch (C, D, H, W)."""
    features = [feature[0].float().flatten(1) for feature in encode(backbone, patch[None])]
    means = torch.cat([feature.mean(dim=1) for feature in features])
    squares = torch.cat([feature.square().mean(dim=1) for feature in features])
    return torch.stack([means, squares])
