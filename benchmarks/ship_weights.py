"""Turn the weights of a pretraining into the file that ships with misfm: half precision, described in full.

    python benchmarks/ship_weights.py RUN src/misfm/weights/builtin.safetensors

Also writes how well the pretext was learnt on held-out scans to benchmarks/results/pretraining.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from misfm.config import PretrainSettings, parse
from misfm.data.store import Store
from misfm.files import write_json
from misfm.models import create
from misfm.recipes.pretrain import split_records, weights_info
from misfm.training.checkpoint import load_checkpoint
from misfm.training.run import RunFolder
from misfm.weights import save


def main() -> None:
    """Read the last checkpoint of a finished run and write it anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    settings = parse(PretrainSettings, run.read_settings(), "settings")
    store = Store.open(settings.store)
    training, _ = split_records(store.records(), settings)
    network, size = settings.network, settings.patch_size
    backbone = create(network.name, num_classes=2, patch_size=size, **network.options).backbone
    model = settings.pretext.build().build_model(backbone)
    model.load_state_dict(load_checkpoint(run.last).model)
    save(arguments.out, model, weights_info(settings, store, training, model), dtype=torch.float16)
    rows = [row for row in run.read_metrics() if "validation_pretext_dice" in row]
    curve = [{"step": row["step"], **{k: v for k, v in row.items() if "validation" in k}} for row in rows]
    write_json(Path(__file__).parent / "results" / "pretraining.json", curve)
    for row in curve:
        print(f"step {row['step']}  pretext Dice {row['validation_pretext_dice']:.3f}")
    print(f"chance {curve[-1]['validation_chance_dice']:.3f}")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
