"""A folder that ``nnUNetv2_train -pretrained_weights`` accepts: checkpoint, plans, and what to run."""

from __future__ import annotations

from pathlib import Path

from misfm.errors import WeightsError
from misfm.files import write_json, write_text
from misfm.models.resenc import ResEnc
from misfm.weights.archives import write_archive
from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.nnssl_resenc import reference_names
from misfm.weights.nnunet_model import FOLD, describe_dataset, model_of, notes_on
from misfm.weights.nnunet_plans import (
    CHECKPOINT,
    CONFIGURATION,
    PLANS_NAME,
    STEPS_FILE,
    next_steps,
    plan,
)

PET_NOTE = (
    "PET was compressed in training (asinh of multiples of its median), for which nnU-Net has no scheme: "
    "z-scores are planned instead."
)


@EXPORTS.register("nnunet")
class NnunetExport(ExportFormat):
    """Writes weights of ResEnc; what the source lacks has its initial values."""

    takes_dataset = True

    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write the checkpoint, plans and what to run into the folder ``out``.

        Weights that label become a model folder, from which nnU-Net predicts: with ``dataset.json``, and the
        checkpoint in the folder of a fold.
        """
        backbone, before = exported.model.backbone, len(exported.report.notes)
        if not isinstance(backbone, ResEnc):
            raise WeightsError(
                f"The network of {exported.report.source} is '{exported.info.network.name}', and nnU-Net "
                "takes weights of 'resenc' and 'resenc-l' alone; for others use --to safetensors or onnx."
            )
        if any(rule.kind == "pet" for rule in exported.info.rules):
            exported.report.notes.append(PET_NOTE)
        planned = plan(backbone, exported.info, exported.patch_size, exported.plans)
        notes = [*exported.fresh_parts, *exported.report.notes[before:]]
        tensors = reference_names(exported.model.state_dict())
        plans, steps = out / f"{PLANS_NAME}.json", out / STEPS_FILE
        if not exported.labels:
            write_archive(out / CHECKPOINT, {"network_weights": tensors})
            write_json(plans, planned)
            write_text(steps, next_steps(planned, notes, CHECKPOINT))
            return [out / CHECKPOINT, plans, steps]
        content = model_of(exported.info, tensors, planned, CONFIGURATION)
        write_archive(out / FOLD / CHECKPOINT, content)
        for path in (plans, out / "plans.json"):
            write_json(path, planned)
        write_json(out / "dataset.json", describe_dataset(exported.info))
        notes += notes_on(exported.info)
        write_text(steps, next_steps(planned, notes, f"{FOLD}/{CHECKPOINT}"))
        return [out / FOLD / CHECKPOINT, plans, out / "plans.json", out / "dataset.json", steps]
