"""Handing weights over to other tools; :mod:`misfm.weights.exports` has the formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misfm.errors import ConfigError, WeightsError
from misfm.models import create
from misfm.models.base import SegmentationModel
from misfm.volume import Shape
from misfm.weights import NetworkInfo, TransferReport, WeightsInfo, load
from misfm.weights.exports import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.nnunet_plans import DatasetPlans
from misfm.weights.pretrained import UNRECORDED_PATCH_SIZE
from misfm.weights.source import Source, open_source


def export(
    source: Source, to: str, out: Path, *, dataset: Path | None = None, patch_size: Shape | None = None
) -> dict[str, Any]:
    """Write weights in the form of another tool.

    Args:
        source: as for :func:`misfm.weights.load`; a mapping needs the names of a known other project.
        to: a format: ``"nnunet"``: a folder with a checkpoint and plans that ``nnUNetv2_train
            -pretrained_weights`` accepts, for ResEnc only; ``"onnx"``: a network for one patch size;
            ``"safetensors"``: our file.
        out: the folder or file.
        dataset: for nnU-Net, the dataset's folder in ``nnUNet_preprocessed``, with nnU-Net's own plans.
        patch_size: voxels (D, H, W); by default that of the weights, then that of the dataset's plans.

    Returns:
        What was written and noticed, ready for JSON.

    Raises:
        ConfigError: options that do not go together, or a package is missing.
        WeightsError: weights that cannot be read, or that the target cannot hold.
        DataError: no plans in ``dataset``, or ``out`` cannot be written.
    """
    form = EXPORTS.get(to)()
    check_options(form, dataset, patch_size)
    plans = None if dataset is None else DatasetPlans.read(dataset)
    exported = fill(source, patch_size, plans)
    written = form.write(exported, out)
    report = exported.report
    return {
        "to": to,
        "written": [str(path) for path in written],
        "network": exported.info.network.name,
        "pretrained_parameters": report.pretrained_parameters,
        "num_parameters": report.num_parameters,
        "notes": [*report.notes, *exported.fresh_parts, *([] if form.cleans_up else exported.clean_up)],
    }


def check_options(form: ExportFormat, dataset: Path | None, patch_size: Shape | None) -> None:
    """Refuse options that have no meaning for a format, and name the formats for which they have."""
    formats = {name: EXPORTS.get(name) for name in EXPORTS.names()}
    if dataset is not None and not form.takes_dataset:
        takers = " and ".join(name for name, one in formats.items() if one.takes_dataset)
        raise ConfigError(f"--dataset is for --to {takers} only; leave it out.")
    if patch_size is not None and not form.takes_patch_size:
        takers = " and ".join(name for name, one in formats.items() if one.takes_patch_size)
        raise ConfigError(f"--patch-size is for --to {takers}; leave it out.")


def fill(source: Source, patch_size: Shape | None = None, plans: DatasetPlans | None = None) -> ExportedModel:
    """Build the network that weights describe and take all they have, a pretext head included.

    Args:
        source: as for :func:`export`.
        patch_size: voxels (D, H, W) where they differ from the recorded ones.
        plans: of the dataset whose image channels the network shall have.
    """
    opened = open_source(source)
    if opened.info is None:
        raise WeightsError("A mapping with misfm's own names does not say which network it belongs to.")
    recorded = patch_size or opened.info.patch_size
    size = recorded or (plans.patch_size if plans else UNRECORDED_PATCH_SIZE)
    in_channels = len(plans.schemes) if plans else opened.info.in_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the source lacks is drawn, the same for every export
        model = create(
            opened.info.network.name,
            in_channels=in_channels,
            num_classes=opened.info.num_classes,
            patch_size=size,
            **opened.info.network.options,
        )
    report = load(model, opened)
    take_head(model, opened.translated(model.backbone).tensors, report)
    network = NetworkInfo(name=opened.info.network.name, options=model.backbone.options)
    known = {name: getattr(opened.info, name) for name in WeightsInfo.model_fields}
    sizes: dict[str, Any] = {"in_channels": in_channels, "patch_size": recorded}
    if in_channels != opened.info.in_channels:
        sizes["channel_names"] = ()
        if not isinstance(opened.info.intensity, dict):  # of other channels
            sizes["intensity"] = {}
    info = WeightsInfo(**{**known, **sizes, "network": network})
    return ExportedModel(model, info, size, report, plans)


def take_head(model: SegmentationModel, offered: Mapping[str, Tensor], report: TransferReport) -> None:
    """Fill the head too where the transfer left a pretext head out that fits; noted in the report."""
    head = {f"head.{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    fresh = {entry.name for entry in report.reinitialised}
    if not fresh >= head.keys() <= offered.keys() or any(
        offered[n].shape != t.shape for n, t in head.items()
    ):
        return
    with torch.no_grad():
        for name, tensor in head.items():
            tensor.copy_(offered[name])
    report.loaded += [entry for entry in report.reinitialised if entry.name in head]
    report.reinitialised = [entry for entry in report.reinitialised if entry.name not in head]
    report.pretrained_parameters += sum(tensor.numel() for tensor in model.head.parameters())
