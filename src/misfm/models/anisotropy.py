"""How MIS-FM's networks take thick slices: the finest levels may keep the depth and convolve in-plane.

An ``anisotropy`` of 0, 1 or 2 says how many of the finest levels do so. Four steps join levels 0 to 4.
"""

from __future__ import annotations

from torch import nn

from misfm.errors import ConfigError
from misfm.models.cpu import InPlaneConv
from misfm.volume import Shape

ISOTROPIC: Shape = (2, 2, 2)
IN_PLANE: Shape = (1, 2, 2)
STEPS: tuple[tuple[Shape, ...], ...] = (
    (ISOTROPIC, ISOTROPIC, ISOTROPIC, ISOTROPIC),
    (IN_PLANE, ISOTROPIC, ISOTROPIC, ISOTROPIC),
    (IN_PLANE, IN_PLANE, ISOTROPIC, ISOTROPIC),
)
"""For each anisotropy the steps from level to level; before an in-plane step a level convolves in-plane."""


def steps_of(network: str, anisotropy: int) -> tuple[Shape, ...]:
    """The four steps.

    Raises:
        ConfigError: not an anisotropy; the message names the ``network``.
    """
    if anisotropy not in range(len(STEPS)):
        raise ConfigError(f"{network} knows an anisotropy of 0, 1 or 2, got {anisotropy}.")
    return STEPS[anisotropy]


def conv(in_channels: int, out_channels: int, step: Shape = ISOTROPIC, *, strided: bool = False) -> nn.Conv3d:
    """3x3x3 convolution, or 1x3x3 where ``step`` is in-plane; ``strided`` takes that step."""
    depth = 3 if step == ISOTROPIC else 1
    stride = step if strided else 1
    kind = nn.Conv3d if step == ISOTROPIC else InPlaneConv
    return kind(in_channels, out_channels, (depth, 3, 3), stride=stride, padding=(depth // 2, 1, 1))
