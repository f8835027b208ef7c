"""Weights to transfer: our self-describing file, readers of other projects' files, the transfer."""

from misfm.weights.file import DataInfo, NetworkInfo, WeightsInfo, save
from misfm.weights.pretrained import from_pretrained
from misfm.weights.source import Opened, describe, open_source
from misfm.weights.transfer import TransferReport, load

__all__ = [
    "DataInfo",
    "NetworkInfo",
    "Opened",
    "TransferReport",
    "WeightsInfo",
    "describe",
    "from_pretrained",
    "load",
    "open_source",
    "save",
]
