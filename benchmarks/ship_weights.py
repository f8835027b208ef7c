"""Turn the weights of a pretraining into the file that ships with misfm: half precision, licence named.

    python benchmarks/ship_weights.py RUN src/misfm/weights/builtin.safetensors

Also writes how well the pretext was learnt on held-out volumes to benchmarks/results/pretraining.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from misfm.files import write_json
from misfm.training.run import RunFolder
from misfm.weights import file

LICENCE = "Apache-2.0; trained on generated anatomy, on no patient's scan"


def main() -> None:
    """Read the weights of a finished run and write them anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    tensors, info = file.read(run.weights)
    shipped = info.model_copy(update={"licence": LICENCE})
    file.write(arguments.out, tensors, shipped, dtype=torch.float16)
    rows = [row for row in run.read_metrics() if "validation_pretext_dice" in row]
    curve = [{"step": row["step"], **{k: v for k, v in row.items() if "validation" in k}} for row in rows]
    write_json(Path(__file__).parent / "results" / "pretraining.json", curve)
    for row in curve:
        print(f"step {row['step']}  pretext Dice {row['validation_pretext_dice']:.3f}")
    print(f"chance {curve[-1]['validation_chance_dice']:.3f}")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
