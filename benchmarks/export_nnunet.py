"""Run the real nnU-Net from exported weights, by the commands that `misfm export` writes down.

For each weights file: nnU-Net plans a few cases, misfm exports to it, the commands of ``next_steps.txt`` run
as they are (on the CPU, with a trainer that stops after two steps), and what the network held before its
first step is compared with what was exported. Needs ``misfm[bench]``; a minute or two for each file.

    python benchmarks/export_nnunet.py DATASET_DIR WEIGHTS... --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunet_runs import copy_cases, environment

from misfm.commands.export import export
from misfm.files import write_json, write_text
from misfm.report.markdown import markdown_table

NUM_CASES = 5  # nnU-Net's five folds need one each
NAME = "Dataset701_Export"
COLUMNS = {
    "weights": "weights",
    "names_in_network": "tensors of the network",
    "equal_at_start": "equal to ours before the first step",
    "segmentation_layers_of_nnunet": "nnU-Net's own segmentation layers",
    "changed_by_two_steps": "changed by two steps",
    "predicted_cases": "predicted cases",
}
TRAINER = '''
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TwoSteps(nnUNetTrainer):
    """Trains for two steps and keeps what the network held before the first."""

    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net reads the names
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

    def on_train_start(self):
        torch.save(self.network.state_dict(), self.output_folder + "/at_start.pth")
        super().on_train_start()
'''


def first_cases(dataset: Path) -> list[str]:
    """Names of the first labelled cases."""
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    files = sorted((dataset / "labelsTr").glob(f"*{ending}"))
    return [file.name.removesuffix(ending) for file in files[:NUM_CASES]]


def shell(command: str, folder: Path, variables: dict[str, str]) -> None:
    """Run a command line; what it printed is shown if it fails."""
    print(f"  {command}", flush=True)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nfailed: {command}")


def commands(folder: Path) -> list[str]:
    """The numbered command lines of the file that tells what to run."""
    lines = (folder / "next_steps.txt").read_text().splitlines()
    return [line.partition(". ")[2] for line in lines if line[:2] in ("1.", "2.", "3.")]


def run(weights: Path, dataset: Path, work: Path) -> dict[str, Any]:
    """Export, train, compare; all files lie under ``work``."""
    folders = {kind: work / kind for kind in ("raw", "preprocessed", "results", "extTrainer")}
    for folder in folders.values():
        folder.mkdir()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, **environment(folders, threads=1, workers=1), "PATH": programs}
    (folders["extTrainer"] / "two_steps.py").write_text(TRAINER)
    copy_cases(dataset, folders["raw"] / NAME, first_cases(dataset))
    shell("nnUNetv2_plan_and_preprocess -d 701 --no_pp -npfp 1", work, variables)

    exported = work / "exported"
    result = export(weights, "nnunet", exported, dataset=folders["preprocessed"] / NAME)
    copy, preprocess, train = commands(exported)
    shell(copy, exported, variables)
    shell(f"{preprocess} -np 1", exported, variables)
    started = time.perf_counter()
    shell(f"{train} -tr TwoSteps -device cpu", exported, variables)

    folder = folders["results"] / NAME / "TwoSteps__misfmPlans__3d_fullres" / "fold_0"
    ours = torch.load(exported / "checkpoint_final.pth", weights_only=True)["network_weights"]
    at_start = torch.load(folder / "at_start.pth", weights_only=True)
    trained = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    heads = {name for name in at_start if ".seg_layers." in name}
    equal = {name for name in at_start if torch.equal(at_start[name], ours[name])}
    return {
        "weights": weights.name,
        "network": result["network"],
        "names_in_network": len(at_start),
        "names_exported": len(ours),
        "equal_at_start": len(equal - heads),
        "not_equal_at_start": sorted(set(at_start) - equal - heads),
        "segmentation_layers_of_nnunet": len(heads),
        "changed_by_two_steps": sum(not torch.equal(trained[name], at_start[name]) for name in at_start),
        "predicted_cases": len(list((folder / "validation").glob("*.nii.gz"))),
        "seconds_of_training": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="nnU-Net-format dataset")
    parser.add_argument("weights", type=Path, nargs="+", help="weights of a resenc")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = []
    for weights in options.weights:
        print(weights.name, flush=True)
        with tempfile.TemporaryDirectory() as work:
            rows.append(run(weights, options.dataset, Path(work)))
        print(f"  {rows[-1]}", flush=True)
    packages = ("nnunetv2", "dynamic-network-architectures", "torch")
    versions = {package: version(package) for package in packages}
    write_json(options.out / "export_nnunet.json", {"versions": versions, "runs": rows})
    lines = [
        "# Exported weights in the real nnU-Net",
        "",
        f"`nnUNetv2_train ... -pretrained_weights` of nnU-Net {versions['nnunetv2']} with torch "
        f"{versions['torch']}, by the commands that `misfm export --to nnunet` wrote, on {NUM_CASES} cases "
        f"of {options.dataset.name}, two training steps on the CPU, then nnU-Net's own validation.",
        "",
        *markdown_table(list(COLUMNS.values()), [[row[key] for key in COLUMNS] for row in rows]),
    ]
    write_text(options.out / "export_nnunet.md", "\n".join(lines) + "\n")
    if any(row["not_equal_at_start"] for row in rows):
        sys.exit("Some tensors did not arrive; see not_equal_at_start.")


if __name__ == "__main__":
    main()
