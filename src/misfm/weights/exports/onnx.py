"""A network as an ONNX file: one fixed patch size, any batch size, logits of the finest level.

The exporter that traces is taken: it needs no package besides ``onnx`` and works with every torch that misfm
allows. What it leaves out (branches that depend on values) no network here has.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from misfm.errors import ConfigError, WeightsError
from misfm.files import atomic_write
from misfm.models.base import SegmentationModel
from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.file import WeightsInfo
from misfm.weights.seal import METADATA_KEY

OPSET = 20
"""The newest that the tracing exporter writes."""

INPUT, OUTPUT, BATCH = "image", "logits", "batch"
LARGEST = 2**31 - 2**20
"""Bytes of parameters that fit into one file of ONNX, with some room for the graph."""


@EXPORTS.register("onnx")
class OnnxExport(ExportFormat):
    """Writes a network for one patch size; one with a head of random values would answer nothing."""

    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write one file."""
        if not any(name.startswith("head.") for name in exported.taken):
            raise WeightsError(
                f"{exported.report.source} holds no head, so the network has no output: fine-tune it first."
            )
        info = exported.info.model_copy(update={"patch_size": exported.patch_size})
        write_onnx(out, exported.model, info, exported.patch_size)
        return [out]


def write_onnx(path: Path, model: SegmentationModel, info: WeightsInfo, patch_size: Sequence[int]) -> None:
    """Write ``image`` (B, C, D, H, W) -> ``logits`` (B, K, D, H, W), with ``info`` as metadata ``misfm``.

    Args:
        path: file to write.
        model: the network, without deep supervision; it is put into eval mode.
        info: description of the weights.
        patch_size: voxels (D, H, W) of the only patches the file takes.

    Raises:
        ConfigError: the package ``onnx`` is missing.
        WeightsError: a network too large for a single file, or one that ONNX cannot express.
        DataError: the file cannot be written.
    """
    onnx = _onnx()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if num_bytes > LARGEST:
        raise WeightsError(f"A file of ONNX holds 2 GiB and this network has {num_bytes / 2**30:.1f} GiB.")
    # Without gradients: layers have other paths with them, which cannot be traced.
    with atomic_write(path) as temporary, warnings.catch_warnings(), torch.no_grad(), _any_layout():
        warnings.simplefilter("ignore")  # that the exporter is the older one, and what its trace fixes
        try:
            torch.onnx.export(
                model.eval(),
                (torch.zeros(2, info.in_channels, *patch_size),),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise WeightsError(f"Network '{info.network.name}' has no form in ONNX: {reason}.") from error
        proto = onnx.load(str(temporary))
        onnx.helper.set_model_props(proto, {METADATA_KEY: info.as_json()})
        onnx.checker.check_model(proto)
        onnx.save(proto, str(temporary))


@contextmanager
def _any_layout() -> Iterator[None]:
    """Drop what networks ask of the layout of a tensor in memory, for ONNX has no word for it."""
    exporter: Any = torch.onnx  # which does not list these two
    exporter.register_custom_op_symbolic("aten::contiguous", lambda graph, x, layout: x, OPSET)
    try:
        yield
    finally:
        exporter.unregister_custom_op_symbolic("aten::contiguous", OPSET)


def _onnx() -> ModuleType:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ConfigError(
            "Writing ONNX needs the package onnx: install it with `pip install onnx`."
        ) from error
