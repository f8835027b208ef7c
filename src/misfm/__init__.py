"""misfm: self-supervised pretraining and few-label segmentation of 3D medical scans.

>>> import misfm
>>> volume = misfm.read_volume("scan.nii.gz")          # doctest: +SKIP
>>> label_map = misfm.predict("runs/finetune", volume)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from misfm import models, pretext, weights
    from misfm.commands.finetune import finetune
    from misfm.commands.predict import predict
    from misfm.commands.pretrain import pretrain
    from misfm.data.dataset import Dataset
    from misfm.data.ingest import ingest
    from misfm.data.readers import read_volume
    from misfm.data.store import Store
    from misfm.data.writers import write_label_map
    from misfm.evaluation.case import evaluate_case
    from misfm.volume import Box, Volume
    from misfm.weights import from_pretrained

from misfm.errors import ConfigError, DataError, MisfmError, WeightsError

__version__ = "0.1.0"

__all__ = [
    "Box",
    "ConfigError",
    "DataError",
    "Dataset",
    "MisfmError",
    "Store",
    "Volume",
    "WeightsError",
    "__version__",
    "evaluate_case",
    "finetune",
    "from_pretrained",
    "ingest",
    "models",
    "predict",
    "pretext",
    "pretrain",
    "read_volume",
    "weights",
    "write_label_map",
]

# What is heavy to import is imported at its first use, so that `import misfm` and `misfm --help` are instant.
_HOMES = {
    "Box": "misfm.volume",
    "Dataset": "misfm.data.dataset",
    "Store": "misfm.data.store",
    "Volume": "misfm.volume",
    "evaluate_case": "misfm.evaluation.case",
    "finetune": "misfm.commands.finetune",
    "from_pretrained": "misfm.weights",
    "ingest": "misfm.data.ingest",
    "predict": "misfm.commands.predict",
    "pretrain": "misfm.commands.pretrain",
    "read_volume": "misfm.data.readers",
    "write_label_map": "misfm.data.writers",
}
_SUBPACKAGES = ("models", "pretext", "weights")


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"misfm.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'misfm' has no attribute '{name}'")
