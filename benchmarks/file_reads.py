"""How often a command opens its weights and reads each image, as the operating system sees it; needs strace.

    python benchmarks/file_reads.py --dataset DATA/Dataset001_Hippocampus --store STORE --out RUNS

Runs ``finetune``, ``finetune --fold all`` and ``compare`` for a few steps each and prints, for each command,
how often the weights file was opened, and the least, mean and most reads of training, validation and test
images. A read is an opening in which more than 4 KiB were read or the file was mapped; fewer bytes are a look
at the header. A last JSON line holds the same numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from misfm.data.splits import read_split

PEEK = 4096
CALL = re.compile(r"^(\d+)\s+(openat|read|pread64|mmap|close)\((.*)\)\s+=\s+(-?\d+|0x[0-9a-f]+)")
RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
STEPS = ["--steps", "2", "--set", "training.validate_every=2"]


def main() -> None:
    """Run the commands and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True, help="of unlabelled scans, for compare")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; must not exist")
    parser.add_argument("--misfm", default="misfm", help="the command to measure")
    arguments = parser.parse_args()
    out, dataset = arguments.out, str(arguments.dataset)
    out.mkdir(parents=True)
    weights = out / "weights" / "weights.safetensors"
    weights.parent.mkdir()
    subprocess.run(
        [arguments.misfm, "export", "builtin", "--to", "safetensors", "--out", str(weights)], check=True
    )
    tune = ["finetune", "--dataset", dataset, "--weights", str(weights), *STEPS]
    compare = [
        "compare",
        "--store",
        str(arguments.store),
        "--dataset",
        dataset,
        "--recipes",
        "volume-fusion-v2,mae",
    ]
    short = ["--set-pretrain", "training.steps=2", "--set-finetune", "training.steps=2"]
    commands = {
        "finetune": [*tune, "--cases", "5", "--out", str(out / "one")],
        "finetune --twin": [*tune, "--cases", "5", "--twin", "--out", str(out / "twin")],
        "finetune --fold all": [*tune, "--set", "folds=2", "--fold", "all", "--out", str(out / "folds")],
        "compare": [*compare, "--cases", "5", "--seeds", "0", *short, "--out", str(out / "compare")],
    }
    rows = {}
    print("| command | openings of weights | training images | validation images | test images |")
    print("|---|---|---|---|---|")
    for name, command in commands.items():
        log = out / f"{name.replace(' ', '')}.strace"
        calls = "trace=openat,read,pread64,mmap,close"
        traced = ["strace", "-f", "-qq", "-e", calls, "-o", str(log), arguments.misfm, *command]
        subprocess.run(traced, check=True, capture_output=True)
        opened, read = count(log)
        rows[name] = row(name, opened, read, out, arguments.dataset)
        log.unlink()
        print(f"| {name} | {' | '.join(rows[name].values())} |", flush=True)
    print(json.dumps(rows))
    shutil.rmtree(out)


def count(log: Path) -> tuple[Counter[str], Counter[str]]:
    """Return how often each path was opened, and how often it was read."""
    opened: Counter[str] = Counter()
    read: Counter[str] = Counter()
    files: dict[str, list[object]] = {}  # by descriptor: path, bytes read
    for line in log.read_text(errors="replace").splitlines():
        match = CALL.match(line)
        if match is None:
            continue
        _, call, arguments, result = match.groups()
        if call == "openat" and not result.startswith("-"):
            path = arguments.split('"')[1] if '"' in arguments else ""
            opened[path] += 1
            files[result] = [path, 0]
        elif call == "mmap":
            descriptor = arguments.split(", ")[4]
            if descriptor in files:
                files[descriptor][1] = PEEK + 1
        elif call in ("read", "pread64") and (descriptor := arguments.split(",")[0]) in files:
            files[descriptor][1] += max(0, int(result))  # type: ignore[operator]
        elif call == "close" and (closed := files.pop(arguments, None)) and closed[1] > PEEK:  # type: ignore[operator]
            read[str(closed[0])] += 1
    return opened, read


def row(name: str, opened: Counter[str], read: Counter[str], out: Path, dataset: Path) -> dict[str, str]:
    """Sum up: by file for weights, and least, mean and most over the images of each kind."""
    weights = Counter(
        {
            str(Path(p).relative_to(out)): n
            for p, n in opened.items()
            if p.endswith(".safetensors") and p.startswith(str(out))
        }
    )
    split = {"train": set[str](), "val": set[str]()}
    for config in out.glob("**/split.json"):
        if config.is_relative_to(
            out
            / {
                "finetune": "one",
                "finetune --twin": "twin",
                "finetune --fold all": "folds",
                "compare": "compare",
            }[name]
        ):
            for fold in read_split(config):
                for part in split:
                    split[part] |= set(fold[part])
    cells = {"weights": "; ".join(f"{path} {n}" for path, n in sorted(weights.items()))}
    for part, folder in (("train", "imagesTr"), ("val", "imagesTr"), ("test", "imagesTs")):
        images = sorted((dataset / folder).glob("*.nii.gz"))
        numbers = [
            read[str(i)]
            for i in images
            if part == "test" or i.name.removesuffix("_0000.nii.gz") in split[part]
        ]
        cells[part] = (
            f"{min(numbers)} / {sum(numbers) / len(numbers):.1f} / {max(numbers)}" if numbers else ""
        )
    return cells


if __name__ == "__main__":
    main()
