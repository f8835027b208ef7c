"""Networks: one file a backbone, all built by :func:`create`."""

from misfm.models.base import NETWORKS, Backbone, Demand, SegmentationModel
from misfm.models.create import create
from misfm.models.heads import SegmentationHead

__all__ = ["NETWORKS", "Backbone", "Demand", "SegmentationHead", "SegmentationModel", "create"]
