"""Every file that misfm writes and reads again, made by its own commands, with what reads it.

Each reader returns a hash of all that it takes from the files, so that any difference shows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import (
    FINETUNING,
    INTENSITY,
    PRETRAINING,
    SPACING,
    make_dataset,
    make_label_maps,
    make_scans,
    make_weights,
)

from misfm.commands.arm import read_arm
from misfm.commands.export import export
from misfm.commands.finetune import finetune
from misfm.commands.folds import cross_validate
from misfm.commands.predict import predict_files
from misfm.commands.pretrain import pretrain
from misfm.config import FinetuneSettings, PretrainSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import FILE, DatasetFingerprint
from misfm.data.ingest import ingest
from misfm.data.label_maps import ingest_label_maps, read_table
from misfm.data.record import IngestSettings
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.evaluation.evaluate import evaluate_folders
from misfm.models import create
from misfm.planning.fill_defaults import recall
from misfm.planning.volumes import kept_split
from misfm.resolve import resolve
from misfm.training.checkpoint import load_checkpoint
from misfm.training.loop import begin_session
from misfm.training.run import RunFolder
from misfm.weights import open_source


@dataclass(frozen=True)
class Group:
    """Files that are read together.

    Attributes:
        name: of the kind.
        files: those that are damaged.
        folders: what is put back after each fault.
        read: reads all of them as commands do.
        expected: what that gives without damage.
        earlier: what else is right: the states of earlier checkpoints.
        mend: what mends files that were refused; None where nothing does.
        swaps: whether files that change places must be noticed.
        partners: files of other runs to change places with.
        weight: how often it is hit, compared with others.
    """

    name: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    read: Callable[[], str]
    expected: str
    earlier: frozenset[str] = frozenset()
    mend: Callable[[], object] | None = None
    swaps: bool = False
    partners: tuple[Path, ...] = field(default=())
    weight: int = 1


def digest(*parts: Any) -> str:
    """Hash numbers, texts, arrays, tensors and trees of them."""
    state = hashlib.blake2b(digest_size=16)
    _feed(state, parts)
    return state.hexdigest()


def _feed(state: Any, part: Any) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            state.update(repr(key).encode())
            _feed(state, value)
    elif isinstance(part, (list, tuple)):
        state.update(f"[{len(part)}".encode())
        for one in part:
            _feed(state, one)
    elif isinstance(part, torch.Tensor):
        _feed(state, part.detach().numpy())
    elif isinstance(part, np.ndarray):
        state.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
    else:
        state.update(repr(part).encode("utf-8", "surrogatepass"))


def read_store(path: Path) -> str:
    """Everything that commands take from a store."""
    store = Store.open(path)
    parts: list[Any] = [store.settings.model_dump(mode="json"), store.fingerprint(), store.quarantined()]
    for record in store.records():
        parts += [record.model_dump(mode="json"), store.read(record).data, store.anchors(record)]
        if record.labels is not None:
            parts += [store.read_label(record).data, store.label_anchors(record)]
    return digest(parts)


class Made:
    """Scans, stores and runs in a folder, and what reads them."""

    def __init__(self, home: Path) -> None:
        torch.set_num_threads(1)
        logging.disable(logging.CRITICAL)
        self.home = home
        self.scans, self.dataset = make_scans(home / "scans"), make_dataset(home / "dataset")
        self.spacing = IngestSettings(spacing=tuple(map(float, SPACING.split(","))), intensity=INTENSITY)
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            self.ingest()
            self.label_maps = Store.create(home / "maps-store", IngestSettings(intensity="ct"))
            ingest_label_maps(make_label_maps(home / "maps"), self.label_maps)
            self.settings = {seed: self._fine(seed) for seed in (0, 1)}
            for seed, settings in self.settings.items():
                finetune(settings, home / f"run-{seed}")
            self.pretraining = resolve(
                PretrainSettings,
                recipe="small",
                options={"store": str(home / "store")},
                assignments=PRETRAINING,
            )
            pretrain(self.pretraining, home / "pretrained")
            folds = self.settings[0].model_copy(update={"cases": None, "folds": 2})
            cross_validate(folds, home / "folds")
            predict_files(home / "run-0", [self.dataset / "imagesTs"], home / "predictions")
            resenc = make_weights(home / "resenc.safetensors", "resenc", 3, (16, 32, 32))
            export(resenc, "nnunet", home / "exported" / "nnunet")
            export(str(home / "run-0"), "safetensors", home / "exported" / "plain.safetensors")

    def _fine(self, seed: int) -> FinetuneSettings:
        options = {"dataset": str(self.dataset), "weights": "none", "seed": seed}
        return resolve(FinetuneSettings, recipe="small", options=options, assignments=FINETUNING)

    def ingest(self) -> None:
        """Bring the scans into the store, or mend it."""
        ingest([self.scans], self.home / "store", self.spacing)

    def session(self, run: RunFolder, seed: int) -> str:
        """What a resumed run goes on from."""
        settings = self.settings[seed]
        model = self.model(run)
        session = begin_session(model, _Nothing(), settings.training, run, seed)
        return digest(
            session.state.step, model.state_dict(), session.state.best_step, session.state.best_score
        )

    def model(self, run: RunFolder) -> torch.nn.Module:
        """The network of a run."""
        saved = self.settings[0]
        assert saved.network is not None
        options = saved.network.options
        return create(
            saved.network.name, num_classes=6, patch_size=(16, 16, 16), deep_supervision=True, **options
        )

    def run_settings(self, run: RunFolder) -> str:
        """What a resumed run takes from its settings, where options leave it open."""
        given = resolve(FinetuneSettings, recipe="small", options={"dataset": str(self.dataset)})
        return digest(run.read_settings(), recall(given, run).model_dump(mode="json"))

    def images(self, run: Path) -> str:
        """What is known of a dataset's images."""
        images = DatasetFingerprint.open(Dataset.open(self.dataset), run)
        paths = [path for case in images.dataset.cases() for path in case.image_paths]
        return digest({str(path): images.image(path).model_dump(mode="json") for path in paths})


class _Nothing:
    """An objective that is never asked."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def read_weights(path: Path) -> str:
    """Tensors and description of weights."""
    opened = open_source(path)
    info = {} if opened.info is None else opened.info.model_dump(mode="json")
    return digest(dict(sorted(opened.tensors.items())), info)


def earlier_states(made: Made, run: RunFolder) -> frozenset[str]:
    """What a run may go on from if its last checkpoint is damaged: those before it."""
    states = set()
    for path in run.last.parent.glob("*.pt"):
        found = load_checkpoint(path)
        if path not in (run.last, run.best):
            states.add(digest(found.step, found.model, found.best_step, found.best_score))
    return frozenset(states)


def all_groups(home: Path) -> list[Group]:
    """Make everything, and say what reads it."""
    home.mkdir(parents=True, exist_ok=True)
    made = Made(home)
    groups: list[Group] = []

    def add(
        name: str, files: Iterable[Path], folders: Iterable[Path], read: Callable[[], str], **more: Any
    ) -> None:
        found = tuple(files)
        assert found, name
        groups.append(Group(name, found, tuple(folders), read, read(), **more))

    store, cases, run = home / "store", home / "run-0" / "cases", RunFolder(home / "run-0")
    for name, path, mend in (("", store, made.ingest), (", labelled", cases, None)):
        volumes = sorted((path / "volumes").iterdir())
        read = lambda path=path: read_store(path)  # noqa: E731
        add(f"volumes{name}", volumes, [path], read, weight=10, swaps=True, mend=mend)
        add(f"index.sqlite{name}", [path / "index.sqlite"], [path], read, weight=10)
        add(f"store.json{name}", [path / "store.json"], [path], read, weight=2)
    table = lambda: digest(read_table(made.label_maps.path).model_dump(mode="json"))  # noqa: E731
    add("label_table.json", [home / "maps-store" / "label_table.json"], [home / "maps-store"], table)
    earlier = earlier_states(made, run)
    resumed = lambda: made.session(run, 0)  # noqa: E731
    other = (RunFolder(home / "run-1").last,)
    add("last.pt", [run.last], [run.path], resumed, weight=10, swaps=True, partners=other, earlier=earlier)
    best = lambda: digest(vars(load_checkpoint(run.best)))  # noqa: E731
    add("best.pt", [run.best], [run.path], best, weight=8)
    add("weights.safetensors", [run.weights], [run.path], lambda: read_weights(run.path), weight=10)
    for file in ("plain.safetensors", "nnunet/checkpoint_final.pth"):
        path = home / "exported" / file
        add(
            f"exported {path.name}",
            [path],
            [home / "exported"],
            lambda path=path: read_weights(path),
            weight=5,
        )
    add("config.yaml", [run.config], [run.path], lambda: made.run_settings(run), weight=4)
    add("metrics.jsonl", [run.metrics], [run.path], lambda: digest(run.read_metrics()), weight=4)
    splits = [run.path / "split.json", home / "folds" / "folds.json"]
    add(
        "splits",
        splits,
        [run.path, home / "folds"],
        lambda: digest([read_split(path) for path in splits]),
        weight=3,
    )
    pretrained = home / "pretrained"
    kept = lambda: digest(  # noqa: E731
        [
            [one.id for one in part]
            for part in kept_split(Store.open(store), made.pretraining, pretrained, None)
        ]
    )
    add("volumes.json", [pretrained / "volumes.json"], [pretrained], kept)
    scores = lambda: digest(  # noqa: E731
        json.loads((home / "folds" / "fold_0" / "validation.json").read_text()),
        dict(read_arm("arm", home / "folds" / "fold_0", 0, "validation.json").cases),
    )
    add(
        "validation.json", [home / "folds" / "fold_0" / "validation.json"], [home / "folds"], scores, weight=3
    )
    add(FILE, [run.path / FILE], [run.path], lambda: made.images(run.path), weight=3)
    predictions = home / "predictions"
    scored = lambda: digest(evaluate_folders(predictions, made.dataset / "labelsTs"))  # noqa: E731
    add("predictions", sorted(predictions.glob("*.nii.gz")), [predictions], scored, weight=3)
    return groups
