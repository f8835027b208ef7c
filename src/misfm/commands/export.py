"""Handing weights over: to nnU-Net, to ONNX, or as our own file, which converts published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misfm.errors import ConfigError, WeightsError
from misfm.files import atomic_write, write_json, write_text
from misfm.models import create
from misfm.models.base import SegmentationModel
from misfm.models.resenc import ResEnc
from misfm.registry import closest
from misfm.volume import Shape
from misfm.weights import NetworkInfo, TransferReport, WeightsInfo, load
from misfm.weights.file import write
from misfm.weights.nnssl_resenc import reference_names
from misfm.weights.nnunet_plans import CHECKPOINT, PLANS_NAME, STEPS_FILE, DatasetPlans, next_steps, plan
from misfm.weights.onnx_file import write_onnx
from misfm.weights.pretrained import UNRECORDED_PATCH_SIZE
from misfm.weights.source import Source, open_source
from misfm.weights.transfer import BACKBONE, AdaptedEntry, Entry


@dataclass(frozen=True)
class ExportedModel:
    """A network with weights, and what became of them.

    Attributes:
        model: without deep supervision.
        info: description of the weights, sizes and options being those of the model.
        patch_size: voxels (D, H, W) the model was built for.
        report: which of its tensors come from the source, the head included.
    """

    model: SegmentationModel
    info: WeightsInfo
    patch_size: Shape
    report: TransferReport

    @property
    def taken(self) -> set[str]:
        """Names of the tensors that come from the source."""
        entries: list[Entry | AdaptedEntry] = [*self.report.loaded, *self.report.adapted]
        return {entry.name for entry in entries}


def export(
    source: Source, to: str, out: Path, *, dataset: Path | None = None, patch_size: Shape | None = None
) -> dict[str, Any]:
    """Write weights in the form of another tool.

    Args:
        source: as for :func:`misfm.weights.load`; a mapping needs the names of a known other project.
        to: ``"nnunet"``: a folder with a checkpoint and plans that ``nnUNetv2_train -pretrained_weights``
            accepts, for ResEnc only; ``"onnx"``: a network for one patch size; ``"safetensors"``: our file.
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
    if to not in WRITERS:
        raise ConfigError(f"There is no export to '{to}'; {closest(to, list(WRITERS))}")
    if dataset is not None and to != "nnunet":
        raise ConfigError("--dataset is for --to nnunet only; leave it out.")
    if patch_size is not None and to == "safetensors":
        raise ConfigError("--patch-size is for --to nnunet and onnx; leave it out.")
    plans = None if dataset is None else DatasetPlans.read(dataset)
    filled = fill(source, patch_size, plans)
    written = WRITERS[to](filled, out, plans)
    report = filled.report
    return {
        "to": to,
        "written": [str(path) for path in written],
        "network": filled.info.network.name,
        "pretrained_parameters": report.pretrained_parameters,
        "num_parameters": report.num_parameters,
        "notes": [*report.notes, *fresh_parts(filled)],
    }


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
    sizes = {"in_channels": in_channels, "patch_size": recorded}
    return ExportedModel(model, WeightsInfo(**{**known, **sizes, "network": network}), size, report)


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


def fresh_parts(filled: ExportedModel) -> list[str]:
    """Say which parts of the backbone do not come from the source."""
    fresh = [entry.name for entry in filled.report.reinitialised if entry.name.startswith(BACKBONE)]
    parts = sorted({name.split(".")[1] for name in fresh})
    if not fresh:
        return []
    return [f"{len(fresh)} tensors of the {' and '.join(parts)} are not in the source and start untrained."]


def to_safetensors(filled: ExportedModel, out: Path, plans: DatasetPlans | None) -> list[Path]:
    """Write what the source holds and nothing else, so that loading it reports the same."""
    state = filled.model.state_dict()
    write(out, {name: state[name] for name in state if name in filled.taken}, filled.info)
    return [out]


def to_onnx(filled: ExportedModel, out: Path, plans: DatasetPlans | None) -> list[Path]:
    """Write the network; one with a head of random values would answer nothing."""
    if not any(name.startswith("head.") for name in filled.taken):
        raise WeightsError(
            f"{filled.report.source} holds no head, so the network has no output: fine-tune it first."
        )
    info = filled.info.model_copy(update={"patch_size": filled.patch_size})
    write_onnx(out, filled.model, info, filled.patch_size)
    return [out]


def to_nnunet(filled: ExportedModel, out: Path, plans: DatasetPlans | None) -> list[Path]:
    """Write checkpoint, plans and what to run; what the source lacks has its initial values."""
    backbone = filled.model.backbone
    if not isinstance(backbone, ResEnc):
        raise WeightsError(
            f"The network of {filled.report.source} is '{filled.info.network.name}', and nnU-Net takes "
            "weights of 'resenc' and 'resenc-l' alone; for others use --to safetensors or onnx."
        )
    planned = plan(backbone, filled.info, filled.patch_size, plans)
    paths = [out / CHECKPOINT, out / f"{PLANS_NAME}.json", out / STEPS_FILE]
    with atomic_write(paths[0]) as temporary:
        torch.save({"network_weights": reference_names(filled.model.state_dict())}, temporary)
    write_json(paths[1], planned)
    write_text(paths[2], next_steps(planned, fresh_parts(filled)))
    return paths


WRITERS: dict[str, Callable[[ExportedModel, Path, DatasetPlans | None], list[Path]]] = {
    "nnunet": to_nnunet,
    "safetensors": to_safetensors,
    "onnx": to_onnx,
}
