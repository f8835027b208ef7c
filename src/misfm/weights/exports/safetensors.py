"""Our own weights file, into which published checkpoints are converted."""

from __future__ import annotations

from pathlib import Path

from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat
from misfm.weights.file import write


@EXPORTS.register("safetensors")
class SafetensorsExport(ExportFormat):
    """Writes what the source holds and nothing else, so that loading it reports the same."""

    takes_patch_size = False
    cleans_up = True

    def write(self, exported: ExportedModel, out: Path) -> list[Path]:
        """Write one file."""
        state = exported.model.state_dict()
        write(out, {name: state[name] for name in state if name in exported.taken}, exported.info)
        return [out]
