"""The runs of a comparison, and the settings of each: all that arms share, and the one thing that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from misfm.config import CompareSettings, FinetuneSettings, PretrainSettings
from misfm.data.generated import PREFIX as GENERATED
from misfm.errors import ConfigError
from misfm.evaluation.arms import SCRATCH
from misfm.planning.fill_defaults import fill_network
from misfm.pretext import PRETEXTS
from misfm.registry import closest
from misfm.resolve import recipe_names, resolve
from misfm.settings import NO_WEIGHTS


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
        "weights": NO_WEIGHTS if start is None else str(start),
        "transfer": transfer,
        "cases": trial.cases,
        "seed": trial.seed,
    }
    assignments = ["training.patience=null", *settings.finetune]  # all arms take the same steps
    fine = resolve(FinetuneSettings, recipe=settings.base, options=options, assignments=assignments)
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
