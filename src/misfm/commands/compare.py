"""Pretext tasks, networks and label budgets side by side, each arm with the same data, steps and schedule.

Every run is a folder of its own below ``out`` and is resumed where it stopped; runs that fail are reported.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from misfm.commands.evaluate import evaluate
from misfm.commands.finetune import finetune
from misfm.commands.predict import predict_files
from misfm.commands.pretrain import pretrain
from misfm.config import CompareSettings, FinetuneSettings, PretrainSettings, recipe_names, resolve
from misfm.data.dataset import Dataset
from misfm.data.generated import PREFIX as GENERATED
from misfm.data.generated import SETTINGS as GENERATED_SETTINGS
from misfm.data.generated import is_generated
from misfm.data.intensity import Kind
from misfm.data.splits import Split, read_split
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.evaluation.arms import SCRATCH, Arm, dice_by_case, learning_curve
from misfm.files import write_json, write_text
from misfm.models.base import NETWORKS
from misfm.parallel import pool
from misfm.planning.fill_defaults import common_grid, fill_flips, fill_network
from misfm.planning.leakage import check_pretraining
from misfm.planning.splits import SPLIT, choose_cases, shared_split, split_of
from misfm.planning.volumes import VOLUMES, scans_of, volumes_of
from misfm.pretext import PRETEXTS
from misfm.registry import closest
from misfm.report.comparison import as_markdown, compare_budgets, compare_report, savings
from misfm.report.html import render_report
from misfm.terminal import logger
from misfm.training.loop import Interrupted
from misfm.training.run import RunFolder


@dataclass(frozen=True)
class Trial:
    """One training run of the comparison.

    Attributes:
        network: registered name.
        recipe: what it is pretrained with, or ``"scratch"``.
        cases: labelled cases it is fine-tuned on; 0 for the pretraining itself.
        seed: of the run.
    """

    network: str
    recipe: str
    cases: int = 0
    seed: int = 0

    def folder(self, out: Path) -> Path:
        """Where the run lies."""
        name = f"{self.network}-{self.recipe}"
        return out / "finetune" / f"{name}-{self.cases}cases-seed{self.seed}" if self.cases else out / name


@dataclass(frozen=True)
class Outcome:
    """What became of a run: why it failed, if it did."""

    failure: str | None = None


def compare(
    settings: CompareSettings, out: Path, *, workers: int = 0, scheduler: str | None = None
) -> dict[str, Any]:
    """Pretrain each network with each recipe, fine-tune each with each budget and seed, score and compare.

    Started again with the same settings it goes on where it was, and with more recipes, networks, budgets or
    seeds it adds their runs. Writes ``out/compare.json``, ``compare.md`` and ``report.html`` after each run.

    Args:
        settings: the arms and what they share.
        out: folder of all runs.
        workers: processes on this machine that train side by side; up to 1 trains in this process.
        scheduler: address of a Dask scheduler to use instead, whose workers see the same files.

    Returns:
        What ``compare.json`` holds.

    Raises:
        ConfigError: an unknown recipe or network, or settings that do not fit.
        DataError: a store or dataset that cannot be used.
        Interrupted: stopped by the user; what is done is kept.
    """
    check(settings)
    settings = share_grid(settings)
    outcomes: dict[Trial, Outcome] = {}
    result: dict[str, Any] = {}
    with pool(workers, scheduler) as workplace:
        for stage, run in (
            (pretrainings(settings), partial(attempt, partial(pretrain_trial, settings, out))),
            (finetunings(settings), partial(attempt, partial(finetune_trial, settings, out))),
        ):
            for trial, outcome in workplace.map(run, list(stage), lost):
                outcomes[trial] = outcome
                if outcome.failure is not None:
                    logger.warning("%s failed: %s", trial.folder(out).name, outcome.failure)
                result = summarise(settings, out, outcomes)
    return result


def check(settings: CompareSettings) -> None:
    """Find mistakes in all settings, and leaks, before the first run starts."""
    dataset = Dataset.open(settings.dataset)
    for assignment in settings.pretrain:
        name, separator, _ = assignment.partition(":")
        if separator and "=" not in name and name not in settings.recipes:
            raise ConfigError(
                f"'{assignment}' is for a recipe that is not compared; "
                f"{closest(name, list(settings.recipes))}"
            )
    for network in settings.networks:
        NETWORKS.get(network)
        for recipe in settings.recipes:
            pretrain_settings(settings, Trial(network, recipe)).pretext.build()
        for cases in settings.cases:
            choose_cases(dataset, finetune_settings(settings, Trial(network, SCRATCH, cases), None))
    learnt = set[str]()
    for trial in pretrainings(settings):
        learnt |= scans_of(pretrain_settings(settings, trial))
    for cases in settings.cases:
        scratch = Trial(settings.networks[0], SCRATCH, cases)
        check_pretraining(learnt, finetune_settings(settings, scratch, None))


def share_grid(settings: CompareSettings) -> CompareSettings:
    """Give all fine-tunings one spacing and intensity rule; each would else take those of its weights."""
    fine = finetune_settings(settings, Trial(settings.networks[0], SCRATCH, settings.cases[0]), None)
    if fine.spacing is not None and fine.intensity is not None:
        return settings
    held, kinds = GENERATED_SETTINGS, set[Kind](("ct",))
    if not is_generated(settings.store):
        store = Store.open(settings.store)
        held, kinds = store.settings, {record.kind for record in store.records()}
    spacing, intensity = common_grid(fine, held, kinds, Dataset.open(settings.dataset))
    given = (f"spacing={json.dumps(spacing)}", f"intensity={json.dumps(intensity)}")
    logger.info("all fine-tunings: %s %s", *given)
    return settings.model_copy(update={"finetune": (*settings.finetune, *given)})


def pretrainings(settings: CompareSettings) -> Iterator[Trial]:
    """Every network with every recipe, once."""
    for network in settings.networks:
        for recipe in settings.recipes:
            yield Trial(network, recipe, seed=settings.seeds[0])


def finetunings(settings: CompareSettings) -> Iterator[Trial]:
    """Every seed, budget and network from every start; one seed of all arms before the next seed."""
    for seed in settings.seeds:
        for cases in settings.cases:
            for network in settings.networks:
                for recipe in (SCRATCH, *settings.recipes):
                    yield Trial(network, recipe, cases, seed)


def attempt(run: Callable[[Trial], None], trial: Trial) -> Outcome:
    """Do one run; whatever stops it, other than the user, is its outcome."""
    try:
        run(trial)
    except Interrupted:
        raise
    except Exception as error:  # one arm that cannot be trained must not take the others with it
        return Outcome(f"{type(error).__name__}: {error}")
    return Outcome()


def lost(trial: Trial) -> Outcome:
    """Outcome of a run whose process died."""
    return Outcome("the process that trained it died, mostly for want of memory; use fewer workers")


def pretrain_trial(settings: CompareSettings, out: Path, trial: Trial) -> None:
    """Pretrain unless that is done, and was done with these settings, on the volumes of all pretrainings."""
    run = RunFolder(trial.folder(out))
    wanted = pretrain_settings(settings, trial)
    volumes = None
    if not is_generated(wanted.store):
        path = shared_file(out, "volumes", wanted.store, wanted.seed, wanted.validation_share)
        volumes = shared_split(path, lambda: volumes_of(Store.open(wanted.store), wanted))
    if run.weights.exists():
        run.require(wanted)
        require_split(run.path / VOLUMES, volumes)
    else:
        pretrain(wanted, run.path, resume=True, volumes=volumes)


def finetune_trial(settings: CompareSettings, out: Path, trial: Trial) -> None:
    """Fine-tune and score unless that is done: on the labelled test cases, or on validation without any."""
    run = RunFolder(trial.folder(out))
    start = None
    if trial.recipe != SCRATCH:
        pretraining = Trial(trial.network, trial.recipe, seed=settings.seeds[0])
        start = RunFolder(pretraining.folder(out)).weights
        if start.exists():
            RunFolder(pretraining.folder(out)).require(pretrain_settings(settings, pretraining))
    fine = finetune_settings(settings, trial, start)
    dataset = Dataset.open(settings.dataset)
    path = shared_file(out, "split", fine.dataset, fine.split, fine.fold, fine.folds, fine.cases)
    split = shared_split(path, lambda: split_of(*choose_cases(dataset, fine)))
    if (run.path / "test.json").exists():
        augmentation = fill_flips(fine.augmentation, dataset)
        run.require(fine.model_copy(update={"augmentation": augmentation}))
        require_split(run.path / SPLIT, split)
        return
    scores = finetune(fine, run.path, resume=True, split=split)
    if (dataset.path / "labelsTs").is_dir():
        predictions = run.path / "predictions"
        predict_files(str(run.path), [dataset.path / "imagesTs"], predictions, overlap=fine.overlap)
        evaluate(predictions, dataset.path / "labelsTs", run.path / "test.json")
    else:
        write_json(run.path / "test.json", scores)


def shared_file(out: Path, what: str, *asked: object) -> Path:
    """Where that is kept which runs share that ask for the same: data may grow before the next is begun."""
    return out / f"{what}_{zlib.crc32(repr(asked).encode()):08x}.json"


def require_split(own: Path, split: Split | None) -> None:
    """Check that a finished run was trained on the cases or volumes that all of its kind share.

    Raises:
        ConfigError: it was not.
    """
    if split is not None and own.exists() and read_split(own)[0] != split:
        raise ConfigError(
            f"The run in {own.parent} was trained on other data than those that all share: choose another "
            "--out."
        )


def pretrain_settings(settings: CompareSettings, trial: Trial) -> PretrainSettings:
    """What all pretrainings share, with the pretext task of one recipe.

    Raises:
        ConfigError: neither a recipe nor a pretext task of that name.
    """
    shared = {"store": settings.store, "network": {"name": trial.network, "options": {}}, "seed": trial.seed}
    if trial.recipe in recipe_names():
        named = resolve(PretrainSettings, recipe=trial.recipe, options=shared)
        pretext = named.pretext.model_dump(mode="json")
    elif trial.recipe in PRETEXTS.names():
        pretext = {"name": trial.recipe}
    else:
        known = [*recipe_names(), *PRETEXTS.names()]
        raise ConfigError(
            f"There is no recipe or pretext task '{trial.recipe}'; {closest(trial.recipe, known)}"
        )
    options = {**shared, "pretext": pretext}
    if PRETEXTS.get(str(pretext["name"])).needs_labels:
        options["store"] = GENERATED
    assignments = assignments_for(settings.pretrain, trial.recipe)
    return resolve(PretrainSettings, recipe=settings.base, options=options, assignments=assignments)


def assignments_for(assignments: Sequence[str], recipe: str) -> list[str]:
    """Those for every recipe, and after them those written for this one, ``RECIPE:KEY=VALUE``."""
    common, own = [], []
    for assignment in assignments:
        name, separator, rest = assignment.partition(":")
        if not separator or "=" in name:  # a colon in the value
            common.append(assignment)
        elif name == recipe:
            own.append(rest)
    return common + own


def finetune_settings(settings: CompareSettings, trial: Trial, start: Path | None) -> FinetuneSettings:
    """What all fine-tunings share, with one start, budget and seed.

    Patch and batch that are left open are those of the pretrainings: planned for each arm on its own, they
    might differ. So are options of the network, which the other arms have from their weights. Tasks that
    leave the decoder untrained transfer their encoder only.
    """
    transfer = "all"
    if trial.recipe != SCRATCH:
        transfer = pretrain_settings(settings, trial).pretext.build().transfer
    network = {"name": trial.network, "options": {}}
    options = {
        "dataset": settings.dataset,
        "network": network,
        "weights": None if start is None else str(start),
        "transfer": transfer,
        "cases": trial.cases,
        "seed": trial.seed,
    }
    fine = resolve(FinetuneSettings, recipe=settings.base, options=options, assignments=settings.finetune)
    shared = resolve(
        PretrainSettings,
        recipe=settings.base,
        options={"store": settings.store, "network": network},
        assignments=assignments_for(settings.pretrain, SCRATCH),
    )
    names = [name for name in ("patch_size", "batch_size") if getattr(fine, name) is None]
    update = {name: getattr(shared, name) for name in names}
    if trial.recipe == SCRATCH:
        update["network"] = fill_network(fine.network, shared.network.model_dump())
    return fine.model_copy(update=update)


def summarise(settings: CompareSettings, out: Path, outcomes: dict[Trial, Outcome]) -> dict[str, Any]:
    """Compare what is finished, and write it down."""
    arms: dict[tuple[str, int], list[Arm]] = {}
    for trial in finetunings(settings):
        path = trial.folder(out) / "test.json"
        if path.exists() and trial in outcomes and outcomes[trial].failure is None:
            scores = json.loads(path.read_text(encoding="utf-8"))
            arm = Arm(trial.recipe, learning_curve(path.parent), dice_by_case(scores), trial.seed)
            arms.setdefault((trial.network, trial.cases), []).append(arm)
    budgets = compare_budgets(arms)
    result: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "pretraining": {
            trial.folder(out).name: (RunFolder(trial.folder(out)).read_metrics() or [{}])[-1]
            for trial, outcome in outcomes.items()
            if not trial.cases and outcome.failure is None
        },
        "failed": {trial.folder(out).name: o.failure for trial, o in outcomes.items() if o.failure},
        "comparisons": [budget.as_json() for budget in budgets],
        "savings": [asdict(saving) for saving in savings(budgets)],
    }
    write_json(out / "compare.json", result)
    write_text(out / "compare.md", as_markdown(budgets, result["failed"]))
    if budgets:
        render_report(compare_report(budgets, result["failed"]), out / "report.html")
    return result
