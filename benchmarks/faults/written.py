"""Every file that misfm writes and reads again, made by its own commands, with what reads it.

Each reader returns a hash of all that it takes from the files, so that any difference shows.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
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
from misfm.data import index
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import FILE, DatasetFingerprint
from misfm.data.ingest import ingest
from misfm.data.label_maps import ingest_label_maps, read_table
from misfm.data.record import IngestSettings
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.evaluation.evaluate import evaluate_folders
from misfm.inference.predictions import FILE_NAME as LIST
from misfm.inference.predictions import Predictions
from misfm.models import create
from misfm.planning.fill_defaults import recall
from misfm.planning.volumes import kept_split
from misfm.resolve import resolve
from misfm.training.checkpoint import load_checkpoint
from misfm.training.run import RunFolder
from misfm.training.session import begin_session
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
        losses: whether a file that is gone must be noticed; what is not there yet is no damage.
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
    losses: bool = True
    swaps: bool = False
    partners: tuple[Path, ...] = ()
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

    def guarded(self, run: RunFolder) -> str:
        """What a run's list of checksums guards."""
        split, metrics = read_split(run.path / "split.json"), run.read_metrics()
        return digest(self.run_settings(run), split, metrics, self.images(run.path))

    def volumes(self, run: Path) -> str:
        """Which volumes a resumed pretraining learns from."""
        parts = kept_split(Store.open(self.home / "store"), self.pretraining, run, None)
        return digest([[record.id for record in part] for part in parts])

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
    return [*store_groups(made), *run_groups(made), *choice_groups(made), *other_groups(made)]


def group(name: str, files: Sequence[Path], folder: Path, read: Callable[[], str], **more: Any) -> Group:
    """Files that are read together, and what reading them gives without damage."""
    assert files, name
    return Group(name, tuple(files), (folder,), read, read(), **more)


def store_groups(made: Made) -> list[Group]:
    """Stores: of scans, of labelled cases, of label maps."""
    groups = []
    stores = (("", made.home / "store", made.ingest), (", labelled", made.home / "run-0" / "cases", None))
    for name, path, mend in stores:
        volumes, read = sorted((path / "volumes").iterdir()), partial(read_store, path)
        groups += [
            group(f"volumes{name}", volumes, path, read, weight=10, swaps=True, mend=mend),
            group(f"index.sqlite{name}", [path / "index.sqlite"], path, read, weight=10),
            group(f"store.json{name}", [path / "store.json"], path, read, weight=2),
        ]
    columns = with_columns(made)
    read = partial(read_store, columns)
    groups.append(group("columns of the index", [columns / index.COLUMNS], columns, read, weight=5))
    maps = made.label_maps.path
    return [*groups, group("label_table.json", [maps / "label_table.json"], maps, partial(table_of, maps))]


def with_columns(made: Made) -> Path:
    """A copy of a store with the file of columns that larger stores have."""
    path, many = made.home / "store-columns", index.MANY
    if not path.exists():
        shutil.copytree(made.home / "store", path)
    index.MANY = 0
    Store.open(path).records()
    index.MANY = many
    return path


def run_groups(made: Made) -> list[Group]:
    """What a run goes on from, and what comes of it."""
    run, other = (RunFolder(made.home / f"run-{seed}") for seed in (0, 1))
    resumed, earlier = partial(made.session, run, 0), earlier_states(made, run)
    more: dict[str, Any] = {"swaps": True, "partners": (other.last,), "earlier": earlier}
    sums = [path for path in (run.path / "checksums.json",) if path.exists()]
    guarded = partial(made.guarded, run)
    return [
        *(group("checksums.json", [path], run.path, guarded, weight=3, losses=False) for path in sums),
        group("last.pt", [run.last], run.path, resumed, weight=10, **more),
        group("best.pt", [run.best], run.path, lambda: digest(vars(load_checkpoint(run.best))), weight=8),
        group("weights.safetensors", [run.weights], run.path, partial(read_weights, run.weights), weight=10),
        group("config.yaml", [run.config], run.path, partial(made.run_settings, run), weight=4),
        group(
            *("metrics.jsonl", [run.metrics], run.path, lambda: digest(run.read_metrics())),
            weight=4,
            losses=False,
        ),
        group(FILE, [run.path / FILE], run.path, partial(made.images, run.path), weight=3),
    ]


def choice_groups(made: Made) -> list[Group]:
    """What was chosen or found out for a run, and is not to be chosen again."""
    home, fold, pretrained = made.home, made.home / "folds" / "fold_0", made.home / "pretrained"
    scores = partial(scores_of, fold)
    split, folds = home / "run-0" / "split.json", home / "folds" / "folds.json"
    volumes = partial(made.volumes, pretrained)
    return [
        group("split.json", [split], split.parent, lambda: digest(read_split(split)), weight=2),
        group("folds.json", [folds], folds.parent, lambda: digest(read_split(folds)), weight=2),
        group("volumes.json", [pretrained / "volumes.json"], pretrained, volumes, weight=2),
        group("validation.json", [fold / "validation.json"], fold, scores, weight=3, losses=False),
    ]


def finished_in(folder: Path) -> str:
    """What a prediction that is given again takes as done; a lost list is one that there never was."""
    predictions = Predictions(folder, {}, {})
    return digest(sorted(str(path) for path in predictions.masks()))


def other_groups(made: Made) -> list[Group]:
    """What is handed over, and taken back."""
    exported, predictions = made.home / "exported", made.home / "predictions"
    plain, nnunet = exported / "plain.safetensors", next((exported / "nnunet").rglob("checkpoint_final.pth"))
    masks = sorted(predictions.glob("*.nii.gz"))
    scored = lambda: digest(evaluate_folders(predictions, made.dataset / "labelsTs"))  # noqa: E731
    return [
        group("export, safetensors", [plain], exported, partial(read_weights, plain), weight=5),
        group("export, nnunet", [nnunet], exported, partial(read_weights, nnunet), weight=5),
        group("predictions", masks, predictions, scored, weight=3),
        group(
            *("predictions.json", [predictions / LIST], predictions, lambda: finished_in(predictions)),
            weight=3,
            losses=False,
        ),
    ]


def table_of(store: Path) -> str:
    """What values in a store of label maps mean."""
    return digest(read_table(Store.open(store)).model_dump(mode="json"))


def scores_of(run: Path) -> str:
    """The scores of a finished fold or arm, as its reader takes them."""
    return digest(dict(read_arm("arm", run, 0, "validation.json").cases))
