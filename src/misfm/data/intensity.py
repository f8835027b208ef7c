"""Intensities: what kind a scan is, how voxels become network input, and which voxels show the patient."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from misfm.data.appearance import appearance_of
from misfm.settings import Extended, Settings
from misfm.volume import Volume

Kind = Literal["ct", "mr", "pet", "nonorm", "rescale_to_0_1", "rgb_to_0_1"]
"""What a channel is. The last three say only how it is normalised, as nnU-Net's names of channels do."""
Voxels = TypeVar("Voxels")

BODY_HU = -600.0
"""CT voxels above this are body: between lung (-700 to -900 with its vessels) and skin, fat and the table."""

_PET_WORDS = {"pet", "pt", "suv", "suvbw", "fdg", "psma"}
"""One of which is in the name of a PET channel: ``PT`` (DICOM), ``SUV``, ``FDG-PET``."""
_MR_PERCENTILES = (0.5, 99.5)
_MR_LIMIT = 5.0
_MR_NOISE = 0.06


class IntensityRule(Settings):
    """How voxels become network input."""

    kind: Kind
    """ct maps an intensity window linearly to [-1, 1]; mr clips to the percentiles 0.5 and 99.5 of the
    content, then subtracts its mean, divides by its standard deviation and clips to [-5, 5]; pet divides by
    the median of the content, takes asinh, and subtracts that of one. nonorm keeps voxels, rescale_to_0_1
    maps the lowest and highest voxel to 0 and 1, rgb_to_0_1 divides by 255 (the names of nnU-Net)."""
    window: tuple[float, float] | None = None
    """Intensity window: lowest and highest HU; CT only."""

    @model_validator(mode="after")
    def _check(self) -> IntensityRule:
        if self.window is not None and (self.kind != "ct" or self.window[0] >= self.window[1]):
            raise ValueError("a window is for CT only, and its first number is the lower one")
        return self


class Normalisation(Extended):
    """A rule fitted to one volume: normalised = (f(clip(x, lower, upper)) - shift) / scale.

    f(x) is asinh(x / unit) where there is a unit, and x elsewhere.
    """

    newer: ClassVar[tuple[str, ...]] = ("unit",)

    lower: float
    """Least value that is kept; below it, this."""
    upper: float
    """Largest value that is kept; above it, this."""
    shift: float
    """Subtracted after clipping."""
    scale: float
    """Divided by at last."""
    unit: float | None = Field(default=None, gt=0)
    """What asinh counts in, after clipping: about linear below, logarithmic above; null: linear all over."""

    def apply(self, voxels: Voxels) -> Voxels:
        """Return normalised float32 voxels of a numpy array or torch tensor; the input is kept."""
        source = cast(Any, voxels)
        values = source.astype(np.float32) if isinstance(source, np.ndarray) else source.float()
        values = values.clip(self.lower, self.upper)
        if self.unit is not None:
            values = values / self.unit
            values = np.arcsinh(values) if isinstance(values, np.ndarray) else values.asinh()
        return cast(Voxels, (values - self.shift) / self.scale)


def normalise(normalisations: Sequence[Normalisation], voxels: NDArray[Any]) -> NDArray[np.float32]:
    """Return (C, D, H, W) voxels as float32, each channel by its own normalisation."""
    pairs = zip(normalisations, voxels, strict=True)
    return np.stack([normalisation.apply(channel) for normalisation, channel in pairs])


def detect(volume: Volume, modality_hint: str | None = None) -> Kind:
    """Tell CT, MR and PET apart; without a hint, PET is taken for MR.

    Args:
        volume: the scan (C, D, H, W) as read from its file.
        modality_hint: DICOM Modality or channel name of a dataset, where there is one. It decides, except
            that a scan tagged CT without any voxel below -50 is not in HU and therefore taken as MR.
    """
    lowest = float(volume.data.min())
    if modality_hint is not None:
        kind = kind_of_name(modality_hint)
        return "mr" if kind == "ct" and lowest >= -50 else kind
    return "ct" if appearance_of(volume.data[0]).is_ct else "mr"


def content_mask(volume: Volume, kind: Kind) -> NDArray[np.bool_]:
    """Return which voxels (D, H, W) show the patient rather than air; all of them if none stands out.

    Args:
        volume: of which the first channel is looked at; see :func:`patient_channel`.
        kind: of that channel.
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


def patient_channel(volume: Volume, kinds: Sequence[Kind]) -> tuple[Volume, Kind]:
    """Return the channel (1, D, H, W) that shows best where the patient is, and its kind.

    That is the first CT, where air is far from everything else; without one, the first channel in which
    voxels differ, for a channel that was not taken is empty in some datasets.
    """
    best = next((number for number, kind in enumerate(kinds) if kind == "ct"), None)
    if best is None:
        differ = (number for number, channel in enumerate(volume.data) if channel.min() < channel.max())
        best = next(differ, 0) if len(volume.data) > 1 else 0
    return volume.with_data(volume.data[best : best + 1]), kinds[best]


def fit(rule: IntensityRule, volume: Volume) -> Normalisation:
    """Return the normalisation of a volume with one channel; a constant volume becomes zero, never NaN.

    For the same numbers everywhere, fit to the whole scan in canonical orientation, before it is cropped or
    resampled.
    """
    if rule.kind == "ct":
        return ct_normalisation(rule)
    if rule.kind == "pet":
        return _pet_normalisation(volume)
    if rule.kind != "mr":
        return _plain_normalisation(rule.kind, volume)
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


def _pet_normalisation(volume: Volume) -> Normalisation:
    """Multiples of the median uptake, compressed: air is -0.9, median 0, and 30 times as much 3.2.

    Uptake is skewed: lesions, brain and bladder are few voxels and up to a hundred times the rest, so that
    percentiles would clip the lesions away, and one bladder would double a standard deviation. The median of
    the body is neither, and makes Bq/ml, counts and SUV alike.
    """
    image = volume.data[0]
    unit = float(np.median(image[content_mask(volume, "pet")]))
    unit = unit if unit > 0 else max(float(image.max()), 0.0) or 1.0
    is_constant = image.min() == image.max()
    upper = max(float(image.max()), 0.0)
    shift = math.asinh(upper / unit if is_constant else 1.0)
    return Normalisation(lower=0.0, upper=upper, shift=shift, scale=1.0, unit=unit)


def _plain_normalisation(kind: Kind, volume: Volume) -> Normalisation:
    lowest, highest = float(volume.data[0].min()), float(volume.data[0].max())
    if kind == "rgb_to_0_1":
        return Normalisation(lower=0.0, upper=255.0, shift=0.0, scale=255.0)
    if kind == "nonorm":
        return Normalisation(lower=lowest, upper=highest, shift=0.0, scale=1.0)
    return Normalisation(lower=lowest, upper=highest, shift=lowest, scale=highest - lowest or 1.0)


def kind_of_name(name: str) -> Kind:
    """Return what a channel or DICOM modality of this name is; what says nothing is MR, hence a z-score.

    As in nnU-Net, CT alone means HU, and ``noNorm``, ``rescale_to_0_1`` and ``rgb_to_0_1`` ask for just that;
    unlike there, PET has a rule of its own.
    """
    plain = name.strip().casefold()
    if plain in ("ct", "nonorm", "rescale_to_0_1", "rgb_to_0_1"):
        return cast(Kind, plain)
    words = set(re.split(r"[^a-z0-9]+", plain))
    return "pet" if words & _PET_WORDS and "ct" not in words else "mr"
