"""A folder that ``nnUNetv2_train -pretrained_weights`` accepts: checkpoint, plans, and what to run."""

from __future__ import annotations

from pathlib import Path

import torch

from misfm.errors import WeightsError
from misfm.files import atomic_write, write_json, write_text
from misfm.models.resenc import ResEnc
from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.nnssl_resenc import reference_names
from misfm.weights.nnunet_plans import CHECKPOINT, PLANS_NAME, STEPS_FILE, next_steps, plan


@EXPORTS.register("nnunet")
class NnunetExport(ExportFormat):
    """Writes weights of ResEnc; what the source lacks has its initial values."""

    takes_dataset = True

    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write three files into the folder ``out``."""
        backbone = exported.model.backbone
        if not isinstance(backbone, ResEnc):
            raise WeightsError(
                f"The network of {exported.report.source} is '{exported.info.network.name}', and nnU-Net "
                "takes weights of 'resenc' and 'resenc-l' alone; for others use --to safetensors or onnx."
            )
        planned = plan(backbone, exported.info, exported.patch_size, exported.plans)
        paths = [out / CHECKPOINT, out / f"{PLANS_NAME}.json", out / STEPS_FILE]
        with atomic_write(paths[0]) as temporary:
            torch.save({"network_weights": reference_names(exported.model.state_dict())}, temporary)
        write_json(paths[1], planned)
        write_text(paths[2], next_steps(planned, exported.fresh_parts))
        return paths
