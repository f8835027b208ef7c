"""Pretext tasks: one file a method, all under the contract of :mod:`misfm.pretext.base`."""

from misfm.pretext import volume_fusion
from misfm.pretext.base import PRETEXTS, PretextBatch, PretextTask

__all__ = ["PRETEXTS", "PretextBatch", "PretextTask", "volume_fusion"]
