"""Pretext tasks: one file a method, all under the contract of :mod:`misfm.pretext.base`."""

from misfm.batches import Batch, Placement
from misfm.pretext import volume_fusion
from misfm.pretext.base import PRETEXTS, PretextTask

__all__ = ["PRETEXTS", "Batch", "Placement", "PretextTask", "volume_fusion"]
