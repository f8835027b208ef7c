"""A folder that ``nnUNetv2_train -pretrained_weights`` accepts: checkpoint, plans, and what to run."""

from __future__ import annotations

from pathlib import Path

from misfm.errors import WeightsError
from misfm.files import write_json, write_text
from misfm.models.resenc import ResEnc
from misfm.weights.archives import write_archive
from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.nnssl_resenc import reference_names
from misfm.weights.nnunet_plans import CHECKPOINT, PLANS_NAME, STEPS_FILE, next_steps, plan

PET_NOTE = (
    "PET was compressed in training (asinh of multiples of its median), for which nnU-Net has no scheme: "
    "z-scores are planned instead."
)


@EXPORTS.register("nnunet")
class NnunetExport(ExportFormat):
    """Writes weights of ResEnc; what the source lacks has its initial values."""

    takes_dataset = True

    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write three files into the folder ``out``."""
        backbone, before = exported.model.backbone, len(exported.report.notes)
        if not isinstance(backbone, ResEnc):
            raise WeightsError(
                f"The network of {exported.report.source} is '{exported.info.network.name}', and nnU-Net "
                "takes weights of 'resenc' and 'resenc-l' alone; for others use --to safetensors or onnx."
            )
        if any(rule.kind == "pet" for rule in exported.info.rules):
            exported.report.notes.append(PET_NOTE)
        planned = plan(backbone, exported.info, exported.patch_size, exported.plans)
        paths = [out / CHECKPOINT, out / f"{PLANS_NAME}.json", out / STEPS_FILE]
        write_archive(paths[0], {"network_weights": reference_names(exported.model.state_dict())})
        write_json(paths[1], planned)
        write_text(paths[2], next_steps(planned, [*exported.fresh_parts, *exported.report.notes[before:]]))
        return paths
