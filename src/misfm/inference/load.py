"""From weights to a predictor: networks on the best device, with the preparation of scans they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from misfm.augment.mirrors import AxisName
from misfm.data.appearance import joined
from misfm.errors import WeightsError
from misfm.inference.ensemble import Ensemble
from misfm.inference.members import check_compatible, members_of
from misfm.inference.precision import Computing, Precision
from misfm.inference.predictor import PredictionSpec, Predictor
from misfm.inference.quality import scale_of_members
from misfm.terminal import logger
from misfm.training.loop import best_device
from misfm.training.memory import keep_freed_memory
from misfm.weights import Opened, WeightsInfo, from_pretrained, open_source
from misfm.weights.source import Source

AXES: tuple[AxisName, ...] = ("D", "H", "W")


@dataclass(frozen=True)
class LoadedWeights:
    """Weights that are ready to label.

    Attributes:
        predictor: the network, or several, with what prepares their input.
        info: what the weights say of themselves; of several, what they have in common.
        sha256: hash of each of the weights by what they are called; see ``sha256`` of the weights as opened.
    """

    predictor: Predictor
    info: WeightsInfo
    sha256: Mapping[str, str]


def predictor_for(
    model: nn.Module,
    info: WeightsInfo,
    *,
    overlap: float = 0.5,
    mirror_axes: Sequence[AxisName] = (),
    precision: Precision = "auto",
) -> Predictor:
    """Return a predictor that prepares scans as the weights want them.

    Args:
        model: the network.
        info: description of its weights.
        overlap: of its windows.
        mirror_axes: axes to average mirrored predictions over.
        precision: what the network is computed in.
    """
    assert info.patch_size is not None
    spec = PredictionSpec(
        patch_size=info.patch_size,
        spacing=info.spacing,
        rules=info.rules,
        whole_scans=info.whole_scans,
        num_classes=info.num_classes,
        scheme=info.scheme,
    )
    return Predictor(
        model,
        spec,
        overlap=overlap,
        mirror_axes=[AXES.index(axis) for axis in mirror_axes],
        largest_part=info.largest_part,
        computing=Computing(precision),
    )


def load_predictor(
    weights_or_run: Source | Sequence[Source],
    *,
    overlap: float = 0.5,
    tta: bool = False,
    precision: Precision = "auto",
) -> Predictor:
    """Return the predictor of :func:`load_weights`."""
    return load_weights(weights_or_run, overlap=overlap, tta=tta, precision=precision).predictor


def load_weights(
    weights_or_run: Source | Sequence[Source],
    *,
    overlap: float = 0.5,
    tta: bool = False,
    precision: Precision = "auto",
    device: torch.device | None = None,
) -> LoadedWeights:
    """Build the networks that weights describe, on the best device there is, with what prepares their input.

    Labels are cleaned up as the weights say; several together clean those that each of them cleans.

    Args:
        weights_or_run: as for :func:`predict`.
        overlap: share of a window that its neighbour repeats, [0, 1).
        tta: average over mirrors along the axes that all of the weights were trained with mirrors of; others
            are never mirrored, since there the network has not seen, or must tell, one side from the other.
        precision: what the networks are computed in.
        device: to run on; None takes the best one there is.
    """
    sources = members_of(weights_or_run)
    keep_freed_memory()
    infos: list[WeightsInfo] = []
    sha256: dict[str, str] = {}
    networks: list[nn.Module] = []
    for source in sources:
        opened = open_source(source)
        infos.append(prediction_info(opened))
        for before, info in zip(sources, infos[:-1], strict=False):  # each, for the first may lack names
            check_compatible(source, infos[-1], before, info)
        networks.append(from_pretrained(opened))
        sha256[opened.label] = opened.sha256
    axes = [axis for axis in AXES if tta and all(axis in info.mirror_axes for info in infos)]
    if tta and not axes:
        logger.info(
            "--tta changes nothing: the weights name no axis that was mirrored in all of their training; "
            "a larger --overlap averages more windows instead."
        )
    regions = infos[0].scheme.has_regions
    network = networks[0] if len(networks) == 1 else Ensemble(networks, regions=regions)
    info = _in_common(infos)
    if info.largest_part:
        logger.info("largest part only, as the weights say: %s", ", ".join(info.largest_part_names))
    network = network.to(best_device() if device is None else device)
    predictor = predictor_for(network, info, overlap=overlap, mirror_axes=axes, precision=precision)
    return LoadedWeights(predictor, info, sha256)


def _in_common(infos: Sequence[WeightsInfo]) -> WeightsInfo:
    """The description of the first of several weights, with what holds for all of them."""
    first, *_ = infos
    cleaned = [label for label in first.largest_part if all(label in info.largest_part for info in infos)]
    ranges = joined([info.scan_ranges for info in infos])
    whole = any(info.whole_scans for info in infos)
    names = next((info.channel_names for info in infos if info.channel_names), ())
    shared = {
        "largest_part": tuple(cleaned),
        "whole_scans": whole,
        "scan_ranges": ranges,
        "channel_names": names,
    }
    return first.model_copy(update={**shared, "quality": scale_of_members([info.quality for info in infos])})


def prediction_info(opened: Opened) -> WeightsInfo:
    """Return the description of weights that can label.

    Raises:
        WeightsError: they do not say how scans are prepared, or were pretrained only.
    """
    info = opened.info
    if info is not None and info.pretext:
        raise WeightsError(
            f"{opened.label} was pretrained with {info.pretext} and has no labels yet; "
            "run `misfm finetune --weights` on it first."
        )
    if info is None or not info.intensity or info.patch_size is None:
        raise WeightsError(
            f"{opened.label} does not say how scans are prepared; fine-tune it with misfm first."
        )
    if info.label_names and len(info.label_names) != info.num_classes:
        raise WeightsError(
            f"{opened.label} names {len(info.label_names)} labels and has {info.num_classes} classes: its "
            "description is damaged; export or train it again."
        )
    return info
