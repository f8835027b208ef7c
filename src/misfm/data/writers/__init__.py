"""Label maps as files: one file a format; :mod:`misfm.data.writers.base` has their contract."""

from misfm.data.writers.base import WRITERS, LabelledScan, MaskWriter
from misfm.data.writers.nifti import write_label_map

__all__ = ["WRITERS", "LabelledScan", "MaskWriter", "write_label_map"]
