"""What a fine-tuning leaves open, filled in from its weights or its dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from misfm.config import FinetuneSettings, NetworkSettings, SettledSettings
from misfm.data.augment import safe_flip_axes
from misfm.data.dataset import Case, Dataset
from misfm.data.intensity import IntensityRule, parse_intensity
from misfm.data.preprocess import canonical
from misfm.data.readers import read_volume
from misfm.errors import ConfigError
from misfm.settings import Spacing
from misfm.training.logging import logger
from misfm.weights import describe

MAX_MEASURED = 32
"""Cases whose spacing is looked at."""
COARSE = 2.0
"""Ratio of the weights' spacing to the dataset's that is worth a warning."""


def settle(settings: FinetuneSettings, dataset: Dataset) -> SettledSettings:
    """Fill in network, spacing, intensity rule and mirrors.

    The network is that of the weights, with the given options on top. Spacing and intensity rule are theirs
    too, unless they were trained on the other modality: HU mean nothing in MR. Mirroring across the midline
    is on only where no label tells left from right.

    Raises:
        ConfigError: channels of both modalities, which one intensity rule cannot serve.
        WeightsError: weights that cannot be read.
    """
    known: Mapping[str, Any] = {} if settings.weights is None else describe(settings.weights)
    kind = dataset.kinds[0]
    if len(set(dataset.kinds)) > 1:
        raise ConfigError(
            f"{dataset.path} mixes CT with other channels, which misfm cannot normalise together yet: "
            "train on the channels of one kind."
        )
    rule = known.get("intensity") or {"kind": kind}
    fits = rule["kind"] == kind
    if not fits and (settings.intensity is None or settings.spacing is None):
        logger.warning(
            "%s was trained on %s and %s is %s: intensities and spacing are taken from the dataset.",
            *(settings.weights, rule["kind"].upper(), dataset.path.name, kind.upper()),
        )
    intensity = settings.intensity or (rule_text(rule) if fits else kind)
    if intensity == "auto":
        intensity = kind
    intensity_rule(intensity)
    augmentation = settings.augmentation
    if "flip_axes" not in augmentation.model_fields_set:
        flips = safe_flip_axes(dataset.label_names.values())
        augmentation = augmentation.model_copy(update={"flip_axes": flips})
    network = settle_network(settings.network, known.get("network"))
    spacing = settings.spacing or settle_spacing(known.get("spacing") if fits else None, dataset.cases())
    update = {"network": network, "spacing": spacing, "intensity": intensity, "augmentation": augmentation}
    return SettledSettings(**{**dict(settings), **update})


def settle_network(given: NetworkSettings | None, known: Mapping[str, Any] | None) -> NetworkSettings:
    """Return the network of the weights with the given options on top, or the given one if it is another."""
    if known is None:
        return given or NetworkSettings()
    if given is None or given.name == known["name"]:
        options = {**known["options"], **(given.options if given else {})}
        return NetworkSettings(name=known["name"], options=options)
    return given


def settle_spacing(known: Spacing | None, cases: Sequence[Case]) -> Spacing:
    """Return the spacing of the weights, or the median of the dataset; say when they are far apart."""
    measured = median_spacing(cases)
    if known is None:
        return measured
    if any(theirs > COARSE * ours for theirs, ours in zip(known, measured, strict=True)):
        logger.warning(
            "The weights were trained at %s mm and the scans have %s mm: details will be lost; "
            "set spacing to keep them.",
            *(known, measured),
        )
    return known


def median_spacing(cases: Sequence[Case]) -> Spacing:
    """Median spacing of up to 32 evenly chosen cases along (D, H, W) in canonical orientation, mm."""
    chosen = cases[:: -(-len(cases) // MAX_MEASURED)]
    spacings = [canonical(read_volume(case.image_paths[0])).spacing for case in chosen]
    d, h, w = (round(float(value), 4) for value in np.median(spacings, axis=0))
    return d, h, w


def rule_text(rule: Mapping[str, Any]) -> str:
    """Write an intensity rule as the option that gives it: ``ct``, ``mr`` or ``ct:LOW,HIGH``."""
    window = rule.get("window")
    return f"{rule['kind']}:{window[0]:g},{window[1]:g}" if window else str(rule["kind"])


def intensity_rule(text: str) -> IntensityRule:
    """Return the rule of a settled ``intensity``, which is never ``auto``.

    Raises:
        ConfigError: no such rule.
    """
    rule = parse_intensity(text)
    if rule is None:
        raise ConfigError("The intensity rule of a fine-tuning is 'ct', 'mr' or 'ct:LOW,HIGH'.")
    return rule
