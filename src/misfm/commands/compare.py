"""Pretext tasks, networks and label budgets side by side, each arm with the same data, steps and schedule.

Every run is a folder of its own below ``out`` and is resumed where it stopped; runs that fail are reported.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from misfm.commands.arm import SCORES, read_arm, train_arm
from misfm.commands.finetune import Shared, tell_doubts
from misfm.commands.pretrain import pretrain
from misfm.commands.trials import Trial, finetune_settings, finetunings, pretrain_settings, pretrainings
from misfm.config import CompareSettings, FinetuneSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.generated import SETTINGS as GENERATED_SETTINGS
from misfm.data.generated import is_generated
from misfm.data.ingest import ingest_dataset
from misfm.data.intensity import Kind
from misfm.data.intensity_text import AUTO, intensity_text, rules_for
from misfm.data.record import IngestSettings
from misfm.data.splits import Split, read_split
from misfm.data.store import Store
from misfm.errors import ConfigError, MisfmError
from misfm.evaluation.arms import SCRATCH, Arm
from misfm.files import write_json, write_text
from misfm.models.base import NETWORKS
from misfm.parallel import pool
from misfm.planning.fill_defaults import common_grid, fill_flips
from misfm.planning.leakage import check_pretraining
from misfm.planning.splits import SPLIT, choose_cases, find_cases, shared_split, split_of
from misfm.planning.volumes import VOLUMES, open_scans, scans_of, split_records, volumes_of
from misfm.registry import closest
from misfm.report.comparison import as_markdown, compare_budgets, compare_report, savings
from misfm.report.html import render_report
from misfm.terminal import logger
from misfm.training.exclusive import as_begun, exclusive
from misfm.training.run import RunFolder

CASES = "cases"
"""Begin of the name of the store that the fine-tunings of a comparison share."""


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
        Taken: another process works in the folder.
        Interrupted: stopped by the user; what is done is kept.
    """
    first = next(pretrainings(settings)).folder(out)
    with exclusive(out), as_begun(RunFolder(first)):
        return compare_here(settings, out, workers=workers, scheduler=scheduler)


def compare_here(
    settings: CompareSettings, out: Path, *, workers: int, scheduler: str | None
) -> dict[str, Any]:
    """Do what :func:`compare` does, in a folder that is ours."""
    images = DatasetFingerprint.open(Dataset.open(settings.dataset), out)
    tell_doubts(images.dataset)
    check(settings, out, images)
    settings = share_grid(settings, images)
    share_cases(settings, out, images)
    outcomes: dict[Trial, Outcome] = {}
    result: dict[str, Any] = {}
    with pool(workers, scheduler) as workplace:
        for trials, run in (
            (pretrainings(settings), partial(attempt, partial(pretrain_trial, settings, out))),
            (finetunings(settings), partial(attempt, partial(finetune_trial, settings, out))),
        ):
            for trial, outcome in workplace.map(run, list(trials), lost):
                outcomes[trial] = outcome
                if outcome.failure is not None:
                    logger.warning("%s failed: %s", trial.folder(out).name, outcome.failure)
                result = summarise(settings, out, outcomes)
    return result


def check(settings: CompareSettings, out: Path, images: DatasetFingerprint) -> None:
    """Find mistakes in all settings, and leaks, before the first run starts."""
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
            fine = finetune_settings(settings, Trial(network, SCRATCH, cases), None)
            for part in choose_cases(images.dataset, fine):
                images.keep(part)
    learnt = set[str]()
    for trial in pretrainings(settings):
        wanted = pretrain_settings(settings, trial)
        if not is_generated(wanted.store):
            learnt.update(scans_of(split_records(open_scans(wanted, out).records(), wanted)[0]))
    for cases in settings.cases:
        scratch = Trial(settings.networks[0], SCRATCH, cases)
        check_pretraining(learnt, finetune_settings(settings, scratch, None), images)


def share_grid(settings: CompareSettings, images: DatasetFingerprint) -> CompareSettings:
    """Give all fine-tunings one spacing and intensity rule; each would else take those of its weights."""
    fine = finetune_settings(settings, Trial(settings.networks[0], SCRATCH, settings.cases[0]), None)
    if fine.spacing is not None and fine.intensity is not None:
        return settings
    held, kinds = GENERATED_SETTINGS, set[Kind](("ct",))
    if not is_generated(settings.store):
        store = Store.open(settings.store)
        held, kinds = store.settings, {kind for look in store.records().looks[0] for kind in look.kinds}
    spacing, intensity = common_grid(fine, held, kinds, images)
    given = (f"spacing={json.dumps(spacing)}", f"intensity={json.dumps(intensity)}")
    logger.info("all fine-tunings: %s %s", *given)
    return settings.model_copy(update={"finetune": (*settings.finetune, *given)})


def share_cases(settings: CompareSettings, out: Path, images: DatasetFingerprint) -> None:
    """Preprocess the cases of all fine-tunings that are not finished once, into a store that they share.

    What cannot be used is left to the runs that need it: they fail, and the others go on.
    """
    images.save(out)
    for count in sorted({trial.cases for trial in finetunings(settings) if not is_finished(trial, out)}):
        fine = finetune_settings(settings, Trial(settings.networks[0], SCRATCH, count), None)
        with suppress(MisfmError):
            parts = find_cases(images.dataset, split_for(fine, images.dataset, out))
            cases = [case for part in parts for case in part]
            prepared = ingest_settings(fine, images.dataset)
            ingest_dataset(images.dataset, cases, store_of(fine, out), prepared, images=images)
    images.forget()


def is_finished(trial: Trial, out: Path) -> bool:
    """Whether a fine-tuning has been scored."""
    return (trial.folder(out) / SCORES).exists()


def ingest_settings(fine: FinetuneSettings, dataset: Dataset) -> IngestSettings:
    """How the cases of fine-tunings with one spacing and intensity rule are prepared."""
    assert fine.spacing is not None
    given = fine.intensity or AUTO
    intensity = intensity_text(rules_for(AUTO, dataset.kinds)) if given == AUTO else given
    return IngestSettings(spacing=fine.spacing, intensity=intensity)


def store_of(fine: FinetuneSettings, out: Path) -> Path:
    """The store of the cases of all fine-tunings with one spacing and intensity rule."""
    return shared_file(out, CASES, fine.spacing, fine.intensity).with_suffix("")


def split_for(fine: FinetuneSettings, dataset: Dataset, out: Path) -> Split:
    """Return the cases that all fine-tunings with one number of labels share."""
    path = shared_file(out, "split", fine.dataset, fine.split, fine.fold, fine.folds, fine.cases)
    return shared_split(path, lambda: split_of(*choose_cases(dataset, fine)))


def attempt(run: Callable[[Trial], None], trial: Trial) -> Outcome:
    """Do one run; whatever fails in it is its outcome."""
    try:
        run(trial)
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
        volumes = shared_split(path, lambda: volumes_of(open_scans(wanted, run.path), wanted))
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
    split = split_for(fine, dataset, out)
    if (run.path / SCORES).exists():
        augmentation = fill_flips(fine.augmentation, dataset)
        run.require(fine.model_copy(update={"augmentation": augmentation}))
        require_split(run.path / SPLIT, split)
        return
    shared = Shared(split, DatasetFingerprint.open(dataset, out), store_dir=store_of(fine, out))
    train_arm(fine, run.path, shared=shared)


def shared_file(out: Path, what: str, *asked: object) -> Path:
    """Where that is kept which runs share that ask for the same: data may grow before the next is started."""
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


def summarise(settings: CompareSettings, out: Path, outcomes: dict[Trial, Outcome]) -> dict[str, Any]:
    """Compare what is finished, and write it down."""
    arms: dict[tuple[str, int], list[Arm]] = {}
    for trial in finetunings(settings):
        folder = trial.folder(out)
        if (folder / SCORES).exists() and trial in outcomes and outcomes[trial].failure is None:
            arm = read_arm(trial.recipe, folder, trial.seed)
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
