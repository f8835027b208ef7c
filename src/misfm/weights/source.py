"""Where weights come from: a file of ours or of another project, a run folder, a name, the hub, a mapping."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misfm.errors import WeightsError
from misfm.models import Backbone
from misfm.weights import file, hub, published
from misfm.weights.containers import named_tensors, origin_of, with_plan_beside
from misfm.weights.file import WeightsInfo
from misfm.weights.formats import ForeignFormat, ForeignInfo, Translation, recognise, unpickle
from misfm.weights.reading import check_room, reading

UNFIT = (
    "has the names of weights that misfm reads, but with shapes or settings that these never have",
    "copy or download it again, or save it with the version it was made with",
)
"""What is wrong with a checkpoint that its reader cannot make sense of, and what to do."""


@dataclass(frozen=True)
class Opened:
    """Weights as found; wherever weights are taken, they are taken opened, too, and not read again.

    Attributes:
        label: what to call them in messages.
        tensors: under the names they were stored with.
        info: what is known about them; None for a mapping with our own names, which says nothing.
        format: the reader of another project's weights, None for ours.
        path: the file they were read from, None for a mapping.
    """

    label: str
    tensors: dict[str, Tensor]
    info: WeightsInfo | None = None
    format: ForeignFormat | None = None
    path: Path | None = None

    @property
    def sha256(self) -> str:
        """Hash of their file, the one that ``sha256sum`` gives; of the tensors where there is no file."""
        if self.path is not None:
            with (
                reading(self.path, "cannot be read", "copy or download it again"),
                self.path.open("rb") as stream,
            ):
                return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @property
    def scans(self) -> tuple[str, ...]:
        """Short fingerprints of the scans that the weights say they have learnt from."""
        return () if self.info is None or self.info.data is None else self.info.data.scans

    def translated(self, backbone: Backbone) -> Translation:
        """The tensors under the names of a model with this backbone.

        Raises:
            WeightsError: the weights learnt on transposed axes.
        """
        if isinstance(self.info, ForeignInfo) and self.info.transposed:
            raise WeightsError(
                f"{self.label} was trained with transposed axes (transpose_forward in its plans), which "
                "misfm cannot undo yet: its kernels would lie along other axes than they learnt."
            )
        if self.format is None:
            return Translation(self.tensors)
        with reading(self.label, *UNFIT):
            return self.format.translate(self.tensors, backbone)


Source = str | os.PathLike[str] | Mapping[str, Tensor] | Opened
"""A path, a name among the published weights (``"builtin"`` comes with the package), an address on the hub
``"hf://owner/repo[@revision][/file]"``, a mapping name -> tensor with our names or those of a known other
project, or what :func:`open_source` made of one of them."""


def open_source(source: Source) -> Opened:
    """Read ``source``, once, without running anything that it holds.

    Only addresses on the hub, and names that stand for one, use a network.

    Raises:
        WeightsError: missing, damaged, of a kind that misfm does not read, or not to be had from the hub.
    """
    if isinstance(source, Opened):
        return source
    if isinstance(source, Mapping):
        reader = recognise(source)
        if reader is None:
            return Opened("the mapping", named_tensors(source))
        return Opened("the mapping", reader.tensors(source) or {}, reader.info(source), reader)
    text, path = str(source), Path(source)
    if text == published.BUILTIN:
        return _open_builtin()
    if text.startswith(hub.SCHEME):
        return _open_file(hub.fetch(hub.parse_address(text)), text)
    if path.exists():
        return _open_file(path / file.FILE_NAME if path.is_dir() else path)
    entry = published.by_name(text)
    if entry is None:
        raise WeightsError(
            f"There is no weights file {path}; give one, a run folder that holds {file.FILE_NAME}, an "
            f"address hf://owner/repo, or published weights by name{published.suggestion(text)}."
        )
    return _open_published(entry)


def describe(source: Source) -> dict[str, Any]:
    """What is known about weights, ready for JSON: the fields of :class:`WeightsInfo` and counts.

    Raises:
        WeightsError: as :func:`open_source`.
    """
    opened = open_source(source)
    floating = [tensor for tensor in opened.tensors.values() if tensor.is_floating_point()]
    return {
        "format": opened.format.title if opened.format else "misfm",
        **(opened.info.model_dump(mode="json") if opened.info else {}),
        "num_tensors": len(opened.tensors),
        "num_values": sum(tensor.numel() for tensor in floating),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in floating}),
    }


def _open_builtin() -> Opened:
    resource = importlib.resources.files("misfm.weights").joinpath("builtin.safetensors")
    if not resource.is_file():
        raise WeightsError("This installation ships no builtin weights; give the path of a weights file.")
    with importlib.resources.as_file(resource) as path:
        return Opened("builtin", *file.read(path))


def _open_published(entry: published.Published) -> Opened:
    opened = _open_file(hub.fetch(entry.address, entry.sha256), entry.name)
    if opened.info is None or opened.info.licence != published.UNKNOWN_LICENCE:
        return opened
    return replace(opened, info=opened.info.model_copy(update={"licence": entry.licence}))


def _open_file(path: Path, label: str | None = None) -> Opened:
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {path}; give one, or a run folder that holds {file.FILE_NAME}."
        )
    label = label or str(path)
    with reading(path, "cannot be read", "copy or download it again"), path.open("rb") as stream:
        start = stream.read(9)
        if start[8:] == b"{":  # safetensors: eight bytes of length, then JSON
            check_room(path)
            return Opened(label, *file.parse(path, start + stream.read()), path=path)
    if not start.startswith((b"PK", b"\x80")):  # a zip archive or a bare pickle, as torch writes them
        raise WeightsError(
            f"{path} is neither a safetensors file nor a checkpoint written by torch (it may be cut short)."
        )
    content = with_plan_beside(unpickle(path), path)
    with reading(path, *UNFIT):
        reader = recognise(content)
        if reader is not None:
            return Opened(label, reader.tensors(content) or {}, reader.info(content), reader, path)
        architecture = str(origin_of(content).architecture or "").rpartition(".")[2][:100]
    names = ", ".join([str(name)[:100] for name in content][:5])
    what = f"of the network {architecture}, which" if architecture else "of a kind that"
    raise WeightsError(f"{path} is a checkpoint {what} misfm does not read (it holds {names}).")
