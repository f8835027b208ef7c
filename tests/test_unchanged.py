"""Fixed seeds still give the weights that were recorded before the code was rearranged.

``recorded/fixed_seed.json`` holds the norm of every kernel and the logged losses, in float32 on one thread.
Norms differ in their last digits from processor to processor, so they are compared to a thousandth. Biases
are left out: the gradient of one that a norm layer follows is rounding alone, which the optimiser makes as
large as any. A change that is meant to alter training is recorded anew: delete the file, run this test, say
in the commit why.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECORDED = Path(__file__).parent / "recorded" / "fixed_seed.json"
EXACT = ["--set", "training.precision=float32"]


def numbers_of(run):
    """Norms of the weights and losses of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(run / "weights.safetensors")
    return {
        "losses": {str(row["step"]): row["loss"] for row in rows if "loss" in row},
        "norms": {
            name: float(f"{tensor.double().norm():.9g}")
            for name, tensor in sorted(weights.items())
            if tensor.dim() > 1
        },
    }


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_fixed_seeds_give_the_recorded_weights(
    run_command, tmp_path, store, dataset, tiny_pretraining, tiny_finetuning
):
    found = {}
    shared = [part for part in tiny_pretraining if part != "--set" and not part.startswith("pretext.")]
    for name in ("volume-fusion-v2", "mae"):
        options = [part for setting in (*shared, f"pretext.name={name}") for part in ("--set", setting)]
        done = run_command("pretrain", "--store", store, "--out", tmp_path / name, *options, *EXACT)
        assert done.status == 0, done.err
        found[name] = numbers_of(tmp_path / name)
    for name, start in (("scratch", ["--weights", "none"]), ("pretrained", ["--weights", tmp_path / "mae"])):
        done = run_command(
            *("finetune", "--dataset", dataset, "--out", tmp_path / name, "--cases", "2"),
            *(*tiny_finetuning, *EXACT, *start),
        )
        assert done.status == 0, done.err
        found[name] = numbers_of(tmp_path / name)
    if not RECORDED.exists():
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    assert found.keys() == recorded.keys()
    for run, numbers in found.items():
        for kind in ("losses", "norms"):
            assert numbers[kind] == pytest.approx(recorded[run][kind], rel=1e-3, abs=1e-6), run
