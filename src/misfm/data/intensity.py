"""Intensities: CT or MR, how voxels become network input, and which voxels show the patient."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from misfm.errors import ConfigError
from misfm.registry import closest
from misfm.settings import Settings
from misfm.volume import Volume

Kind = Literal["ct", "mr"]
Voxels = TypeVar("Voxels")

BODY_HU = -600.0
"""CT voxels above this are body: between lung (-700 to -900 with its vessels) and skin, fat and the table."""

_MR_PERCENTILES = (0.5, 99.5)
_MR_LIMIT = 5.0
_MR_NOISE = 0.06


class IntensityRule(Settings):
    """How voxels become network input."""

    kind: Kind
    """ct maps an intensity window linearly to [-1, 1]; mr clips to the percentiles 0.5 and 99.5 of the
    content, then subtracts its mean, divides by its standard deviation and clips to [-5, 5]."""
    window: tuple[float, float] | None = None
    """Intensity window: lowest and highest HU; CT only."""

    @model_validator(mode="after")
    def _check(self) -> IntensityRule:
        if self.window is not None and (self.kind != "ct" or self.window[0] >= self.window[1]):
            raise ValueError("a window is for CT only, and its first number is the lower one")
        return self


class Normalisation(Settings):
    """A rule fitted to one volume: normalised = (clip(x, lower, upper) - shift) / scale."""

    lower: float
    """Least value that is kept; below it, this."""
    upper: float
    """Largest value that is kept; above it, this."""
    shift: float
    """Subtracted after clipping."""
    scale: float
    """Divided by at last."""

    def apply(self, voxels: Voxels) -> Voxels:
        """Return normalised float32 voxels of a numpy array or torch tensor; the input is kept."""
        source = cast(Any, voxels)
        values = source.astype(np.float32) if isinstance(source, np.ndarray) else source.float()
        return cast(Voxels, (values.clip(self.lower, self.upper) - self.shift) / self.scale)


def normalise(normalisations: Sequence[Normalisation], voxels: NDArray[Any]) -> NDArray[np.float32]:
    """Return (C, D, H, W) voxels as float32, each channel by its own normalisation."""
    pairs = zip(normalisations, voxels, strict=True)
    return np.stack([normalisation.apply(channel) for normalisation, channel in pairs])


def parse_intensity(text: str) -> IntensityRule | None:
    """Return the rule called ``"ct"``, ``"mr"`` or ``"ct:LOW,HIGH"``, and None for ``"auto"``.

    Raises:
        ConfigError: anything else.
    """
    if text == "auto":
        return None
    if text == "ct":
        return IntensityRule(kind="ct")
    if text == "mr":
        return IntensityRule(kind="mr")
    number = r"([-+]?\d+(?:\.\d+)?)"
    window = re.fullmatch(rf"ct:{number},{number}", text.replace(" ", ""))
    if window and -math.inf < float(window[1]) < float(window[2]) < math.inf:
        return IntensityRule(kind="ct", window=(float(window[1]), float(window[2])))
    hint = closest(text, ["auto", "ct", "mr", "ct:-200,600"])
    raise ConfigError(f"There is no intensity rule '{text}'; {hint}")


def detect(volume: Volume, modality_hint: str | None = None) -> Kind:
    """Tell CT from MR.

    Args:
        volume: the scan (C, D, H, W) as read from its file.
        modality_hint: DICOM Modality or channel name of a dataset, where there is one. It decides, except
            that a scan tagged CT without any voxel below -50 is not in HU and therefore taken as MR.
    """
    lowest = float(volume.data.min())
    if modality_hint is not None:
        return "ct" if modality_hint.strip().upper() == "CT" and lowest < -50 else "mr"
    # HU reach from air at about -1000 upwards; MR magnitude images have no negative voxels worth speaking of.
    return "ct" if lowest <= -200 and float(volume.data.max()) > 0 and _is_whole(volume.data) else "mr"


def content_mask(volume: Volume, kind: Kind) -> NDArray[np.bool_]:
    """Return which voxels (D, H, W) show the patient rather than air; all of them if none stands out.

    Only the first channel is looked at, for the others may be of another kind (PET beside CT).
    """
    image = volume.data[0]
    if kind == "ct":
        mask: NDArray[np.bool_] = image > BODY_HU
    else:
        sample = image.ravel()[:: max(1, image.size // 100_000)]
        low, high = np.percentile(sample, _MR_PERCENTILES)
        mask = image > low + _MR_NOISE * (high - low)
    if not mask.any():
        mask[...] = True
    return mask


def fit(rule: IntensityRule, volume: Volume) -> Normalisation:
    """Return the normalisation of a volume with one channel; a constant volume becomes zero, never NaN.

    For the same numbers everywhere, fit to the whole scan in canonical orientation, before it is cropped or
    resampled.
    """
    if rule.kind == "ct":
        return ct_normalisation(rule)
    values = volume.data[0][content_mask(volume, "mr")].astype(np.float64)
    lower, upper = (float(value) for value in np.percentile(values, _MR_PERCENTILES))
    values = values.clip(lower, upper)
    mean, deviation = float(values.mean()), float(values.std())
    if deviation <= 1e-6 * max(abs(mean), 1e-30):
        deviation = 1.0
    lower, upper = max(lower, mean - _MR_LIMIT * deviation), min(upper, mean + _MR_LIMIT * deviation)
    return Normalisation(lower=lower, upper=upper, shift=mean, scale=deviation)


def ct_normalisation(rule: IntensityRule) -> Normalisation:
    """The normalisation of every CT: the window of the rule, -1000 to 1000 HU by default, to [-1, 1]."""
    lower, upper = rule.window or (-1000.0, 1000.0)
    return Normalisation(lower=lower, upper=upper, shift=(lower + upper) / 2, scale=(upper - lower) / 2)


def _is_whole(voxels: NDArray[Any]) -> bool:
    if voxels.dtype.kind in "iu":
        return True
    sample = voxels.ravel()[:: max(1, voxels.size // 10_000)]
    # Interpolated CT has fractions, but its air still spans hundreds of HU.
    return bool((sample == np.rint(sample)).mean() > 0.5 or sample.min() < -500)
