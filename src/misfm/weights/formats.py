"""The contract of readers of other projects' weights, one file each, and the safe way to open their files."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from misfm.errors import WeightsError
from misfm.models import Backbone
from misfm.registry import Registry
from misfm.weights.archives import check_archive
from misfm.weights.file import WeightsInfo
from misfm.weights.reading import check_content, reading

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]  # what rebuilds a pickled numpy number; its module has moved
_NUMPY_ARRAY = np.zeros(0).__reduce__()[0]
ALLOWED_GLOBALS: list[Any] = [
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NUMPY_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *sorted({type(np.dtype(code)) for code in "?bhilqBHILQefd"}, key=lambda kind: kind.__name__),
]
"""All that a checkpoint may hold besides tensors and plain values: losses and scores as numbers and arrays of
numpy, of whatever type. Arrays of anything but numbers are refused afterwards."""


class ForeignInfo(WeightsInfo):
    """The description of another project's weights."""

    notes: tuple[str, ...] = ()
    """What the reader noticed, in sentences."""
    transposed: bool = False
    """Whether its axes are in another order than those of files: such weights are described only."""


@dataclass(frozen=True)
class Translation:
    """Foreign tensors under our names; those without a counterpart keep their own.

    Attributes:
        tensors: name -> tensor.
        notes: what the reader noticed, in sentences.
        adapted: our name -> how the reader changed that tensor on the way.
    """

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)


class ForeignFormat(Protocol):
    """Reader of one project's weights."""

    title: str

    def tensors(self, content: Mapping[str, object]) -> dict[str, Tensor] | None:
        """The network's tensors under their own names; None where ``content`` is of another project.

        ``content`` is what a checkpoint holds, or already a mapping name -> tensor.
        """
        ...

    def info(self, content: Mapping[str, object]) -> WeightsInfo:
        """What keys and shapes tell about the network; called only where :meth:`tensors` gave some."""
        ...

    def translate(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> Translation:
        """Rename ``tensors`` for ``backbone``; a network of another kind gets them back as they are."""
        ...


FORMATS: Registry[ForeignFormat] = Registry("weights format", "misfm.weights")
"""Readers under their names; a new one is one file in this package."""


def recognise(content: Mapping[str, object]) -> ForeignFormat | None:
    """The reader of ``content``, recognised by its keys."""
    readers = (FORMATS.get(name) for name in FORMATS.names())
    return next((reader for reader in readers if reader.tensors(content) is not None), None)


def unpickle(path: Path) -> dict[str, object]:
    """What a checkpoint written by torch holds, on the CPU; code in it is refused, never run.

    Raises:
        WeightsError: damaged, cut short, not a dict, or holding anything but tensors and plain values.
    """
    with reading(path, "is not a whole torch checkpoint", "copy or download it again"):
        check_archive(path)
        content = _load(path)
        check_content(content)
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__} instead of named weights.")
    return cast(dict[str, object], content)


def _load(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, which is told in a sentence
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is damaged or holds objects other than tensors and numbers, which could "
            "run code; save its state dict alone."
        ) from error
