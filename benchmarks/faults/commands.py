"""The commands that are killed, with tiny data; which files are whole, and what must be alike in the end."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from material import FINETUNING, INTENSITY, PRETRAINING, SPACING, as_options

from misfm.data.demo_scans import DATASET, UNLABELLED, copy_demo_scans
from misfm.data.store import Store
from misfm.errors import MisfmError
from misfm.training.checkpoint import load_checkpoint
from misfm.training.run import RunFolder
from misfm.weights import open_source


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        name: of it.
        arguments: without ``--resume``.
        out: what it writes.
        resumes: whether it takes ``--resume``.
        weight: how often it is tried, compared with others.
        processes: whether it starts processes of its own, and so cannot be forked.
    """

    name: str
    arguments: tuple[str, ...]
    out: Path
    resumes: bool = False
    weight: int = 4
    processes: bool = False


def material_commands(home: Path) -> list[list[str]]:
    """Commands that make what the killed ones work on, in this order."""
    scans, dataset = str(home / "scans"), str(home / "dataset")
    store = ["--store", str(home / "store")]
    fine = ["finetune", "--dataset", dataset, "--weights", "none", *as_options(FINETUNING)]
    return [
        ["ingest", scans, *store, "--spacing", SPACING, "--intensity", INTENSITY],
        ["pretrain", *store, "--out", str(home / "pretrained"), *as_options(PRETRAINING)],
        [*fine, "--out", str(home / "run")],
        [
            "predict",
            "--run",
            str(home / "run"),
            "--input",
            f"{dataset}/imagesTs",
            "--output",
            str(home / "masks"),
        ],
    ]


def command_into(
    home: Path, name: str, *words: str, to: str = "--out", out: str = "out", **more: Any
) -> Command:
    """A command that writes into a folder of its own below ``home``."""
    folder = home / re.sub(r"\W+", "-", name)  # "--" would look like an option in messages
    return Command(name, (*words, to, str(folder / out)), folder, **more)


def all_commands(home: Path) -> list[Command]:
    """Every command that writes, and ``info``, which only reads."""
    scans, dataset, store, run = (str(home / name) for name in ("scans", "dataset", "store", "run"))
    pretrain = ("pretrain", "--store", store, *as_options(PRETRAINING))
    finetune = ("finetune", "--dataset", dataset, *as_options(FINETUNING))
    ingest = ("ingest", scans, "--spacing", SPACING, "--intensity", INTENSITY)
    few = ("--set", "probe.cases=2", "--set", "probe.steps=2", "--set", "probe.allow_overlap=true")
    grid = ("--set", f"spacing=[{SPACING}]", "--set", f"intensity={INTENSITY}")
    pretrained = str(home / "pretrained")
    compare = ("compare", "--store", store, "--dataset", dataset, "--recipes", "small,mae", "--cases", "2")
    mae = [line for line in PRETRAINING if not line.startswith(("pretext", "generated"))]
    sets = (*as_options(mae, "--set-pretrain"), *as_options(FINETUNING, "--set-finetune"), "--seeds", "0")
    command = partial(command_into, home / "killed")
    return [
        command("ingest", *ingest, to="--store", weight=10),
        command("ingest --workers", *ingest, "--workers", "2", to="--store", weight=1, processes=True),
        command("convert", "convert", str(home / "pairs")),
        command("pretrain", *pretrain, resumes=True, weight=8),
        command("pretrain --probe", *pretrain, *few, "--probe", dataset, resumes=True),
        command("finetune", *finetune, "--weights", "none", resumes=True, weight=8),
        command("finetune builtin", *finetune, "--weights", pretrained, resumes=True),
        command("finetune --twin", *finetune, "--twin", "--weights", pretrained, resumes=True),
        command(
            "finetune --fold all",
            *finetune,
            "--weights",
            "none",
            "--fold",
            "all",
            "--set",
            "folds=2",
            resumes=True,
        ),
        command(
            "finetune --unlabelled",
            *finetune,
            *grid,
            "--weights",
            "none",
            "--unlabelled",
            store,
            resumes=True,
        ),
        command("compare", *compare, *sets, weight=2),
        command("predict", "predict", "--run", run, "--input", scans, to="--output"),
        command(
            "evaluate",
            "evaluate",
            "--predictions",
            str(home / "masks"),
            "--references",
            f"{dataset}/labelsTs",
            out="scores.json",
        ),
        command("export nnunet", "export", str(home / "resenc.safetensors"), "--to", "nnunet"),
        command("export safetensors", "export", run, "--to", "safetensors", out="w.safetensors"),
        command("demo", "demo", weight=1),
        Command("info", ("info", store, "--json"), home / "killed" / "info", weight=1),
    ]


def shorten_demo() -> None:
    """Let the demo of this process have few scans, and few steps."""
    from misfm.commands import demo

    def copy_few(out: Path) -> None:
        copy_demo_scans(out)
        kept = {"imagesTr": 2, "labelsTr": 2, "imagesTs": 1, "labelsTs": 1, UNLABELLED: 3}
        for folder in (*(out / DATASET).glob("*T[rs]"), out / UNLABELLED):
            for path in sorted(folder.glob("*.nii.gz"))[kept[folder.name] :]:
                path.unlink()
        names = sorted(path.name.removesuffix(".nii.gz") for path in (out / DATASET / "labelsTr").iterdir())
        (out / DATASET / "splits_final.json").write_text(json.dumps([{"train": names[:1], "val": names[1:]}]))
        description = out / DATASET / "dataset.json"
        content = json.loads(description.read_text())
        content.pop("subjects", None)  # names cases that are gone
        description.write_text(json.dumps(content))

    demo.copy_demo_scans = copy_few
    demo.PRETRAINING_STEPS, demo.FINETUNING_STEPS, demo.PRETRAINING_PATCH = 2, 2, (16, 16, 16)


# What is left after a kill


ENDS = {".html": b"</html>", ".png": b"IEND"}


def torn_files(folder: Path) -> list[str]:
    """Files under their final names that cannot be read; asked of a copy, for a reader may mend."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not is_private(path)):
        try:
            check_whole(path)
        except MisfmError as error:
            found.append(f"{path.relative_to(folder)}: {error}")
        except Exception as error:  # whatever a torn file makes its reader raise
            found.append(f"{path.relative_to(folder)}: {error!r}")
    return found


def is_private(path: Path) -> bool:
    """Whether a file is a writer's own: temporary files, SQLite's journals, locks, TensorBoard's log."""
    hidden = (
        path.name.startswith(".")
        or ".staged" in path.parts
        or path.name.endswith(("-journal", "-wal", "-shm", ".lock"))
    )
    return hidden or path.name == "lock" or path.name.startswith("events.out")


def check_whole(path: Path) -> None:
    """Read a file as what its name says it is; whatever that raises tells that it is torn."""
    readers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_bytes()),
        ".yaml": lambda path: dict(yaml.safe_load(path.read_text())),
        ".jsonl": lambda path: RunFolder(path.parent).read_metrics(),
        ".pt": load_checkpoint,
        ".safetensors": open_source,
        ".pth": open_source,
        ".gz": lambda path: gzip.decompress(path.read_bytes()),
        ".sqlite": _whole_store,
    }
    if path.suffix in readers:
        readers[path.suffix](path)
    elif path.suffix in ENDS and ENDS[path.suffix] not in path.read_bytes()[-12:]:
        raise ValueError("no end")


def _whole_store(path: Path) -> None:
    if not (path.parent / "store.json").exists():
        return  # its index is made first: not a store yet
    store = Store.open(path.parent)
    store.quarantined()
    for record in store.records():
        store.read(record)
        store.anchors(record)
        if record.labels is not None:
            store.read_label(record)


# What must be alike at the end

UNLIKE = ("environment.json", "log.txt", "previous.pt")
"""Files of times, machines and command lines, which differ between any two runs, and the checkpoint before
the last: after a signal it is of where the run was stopped."""
CACHE = "dataset_fingerprint.json"
"""What is known of a dataset's images by then; in probes a resumed run need not look at all of them again."""
FILE_TIME = re.compile(r"\d+ ns")
"""When a scan was last changed, in what is kept of its state: the demo copies its scans anew."""
TIMED = ("environment.json", "metrics.jsonl", CACHE)
"""Files whose own checksums are those of times."""
DURATION = re.compile(r"\b(\d+ h )?(\d+ min )?\d+ (s|min)\b")
"""In the report of the demo."""
TIMES = ("samples_per_s", "seconds")


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file that must be the same, whatever happened on the way."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(normalised(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not is_private(path) and path.name not in UNLIKE and not _is_cache(path)
    }


def normalised(path: Path) -> bytes:
    """The bytes of a file, times left out; of an index its rows, since pages remember how they came about."""
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as database:
            return FILE_TIME.sub("", "\n".join(sorted(database.iterdump()))).encode()
    if path.name == CACHE:
        return FILE_TIME.sub("", path.read_text()).encode()
    if path.name == "report.html":
        return DURATION.sub("", path.read_text()).encode()
    if path.suffix == ".jsonl":
        return repr([_timeless(json.loads(line)) for line in path.read_text().splitlines()]).encode()
    if path.name == "checksums.json":  # of each file as it is now, and of the one before
        sums = json.loads(path.read_bytes())
        return repr({name: kept[-1:] for name, kept in sums.items() if name not in TIMED}).encode()
    if path.name in ("compare.json", "results.json"):
        return repr(_timeless(json.loads(path.read_bytes()))).encode()
    return path.read_bytes()


def _is_cache(path: Path) -> bool:
    return path.name == CACHE and "probe" in path.parts


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key not in TIMES}
    return [_timeless(one) for one in tree] if isinstance(tree, list) else tree


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same, though their bytes differ."""
    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    return repr(_listed(one)) == repr(_listed(other))


def _listed(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.shape, tree.flatten().tolist()
    if isinstance(tree, dict):
        return {key: _listed(value) for key, value in tree.items()}
    return [_listed(one) for one in tree] if isinstance(tree, list | tuple) else tree


def differing(folder: Path, expected: dict[str, str]) -> list[str]:
    """Names of files that are not as expected, missing or new."""
    found = contents(folder)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def clear(folders: Sequence[Path]) -> None:
    """Remove folders, and make them again, empty."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
