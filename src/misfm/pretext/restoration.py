"""What tasks that restore a distorted patch have in common: network, loss and score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from misfm.batches import Batch
from misfm.losses import masked_mean
from misfm.models.base import Backbone, SegmentationModel
from misfm.pretext.base import PretextTask


@dataclass(frozen=True, kw_only=True)
class Restorable(Batch):
    """``inputs`` are distorted patches, ``targets`` what they were before, (B, C, D, H, W) float.

    Attributes:
        real: (B, D, H, W) bool, see :meth:`misfm.pretext.base.Placement.real`.
    """

    real: Tensor


class Restoration(PretextTask):
    """Predict the patch before the distortion; subclasses distort. Fits every network with a decoder."""

    def build_model(self, backbone: Backbone) -> nn.Module:
        """Intensities for each voxel, as many channels as the image has."""
        return SegmentationModel(backbone, backbone.in_channels)

    def loss(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Mean squared error over all voxels that are real, distorted or not."""
        assert isinstance(batch, Restorable)
        return {"restoration": masked_mean((outputs.float() - batch.targets).square(), batch.real)}

    def score(self, outputs: Tensor, batch: Batch) -> Mapping[str, float]:
        """Squared errors over the voxels that the distortion changed.

        ``restored_error`` is the network's, beside what needs no network: ``unrestored_error`` leaves the
        voxels as they are, ``mean_error`` gives them the batch's mean intensity.
        """
        assert isinstance(batch, Restorable)
        targets = batch.targets
        changed = (batch.inputs != targets).any(1) & batch.real
        mean = masked_mean(targets, batch.real)
        return {
            "restored_error": float(masked_mean((outputs.detach().float() - targets).square(), changed)),
            "unrestored_error": float(masked_mean((batch.inputs - targets).square(), changed)),
            "mean_error": float(masked_mean((mean - targets).square(), changed)),
        }
