"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from misfm.cli.app import app
from misfm.cli.options import (
    DEFAULT_RECIPE,
    BatchSize,
    Config,
    DeviceCount,
    Json,
    Network,
    Nodes,
    Out,
    Recipe,
    Resume,
    Seed,
    Set,
    Start,
    Steps,
    Strategy,
    Triple,
    Weights,
    case_choice,
    integers,
    names,
    shared_options,
)
from misfm.cli.output import finish, say, say_dice
from misfm.errors import ConfigError

if TYPE_CHECKING:
    from misfm.config import FinetuneSettings, PretrainSettings

ALL_FOLDS = "all"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="The one seed all draws come from.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Run the whole story on real scans, no downloads: under four minutes on two cores."""
    from misfm.commands.demo import run_demo

    finish(run_demo(out, seed=seed), as_json)


@app.command()
def pretrain(
    store: Annotated[
        list[str],
        typer.Option(
            help="Folder written by `misfm ingest`, its address (s3://…, https://…), or 'phantom[:COUNT]' "
            "for generated scans; several may be given."
        ),
    ],
    out: Out,
    weights: Weights = None,
    recipe: Recipe = None,
    network: Network = None,
    steps: Steps = None,
    patch_size: Triple = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    probe: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Judge by short fine-tunings; keep the best.")
    ] = None,
    config: Config = None,
    assignments: Set = None,
    resume: Resume = False,
    devices: DeviceCount = None,
    nodes: Nodes = None,
    strategy: Strategy = "auto",
    as_json: Json = False,
) -> None:
    """Pretrain a network on the scans of a store, without labels."""
    from misfm.commands.pretrain import pretrain as run
    from misfm.config import PretrainSettings
    from misfm.resolve import resolve
    from misfm.training.devices import lead, parse_devices

    def work() -> None:
        settings: PretrainSettings = resolve(
            PretrainSettings,
            recipe=recipe or DEFAULT_RECIPE,
            config=config,
            options={
                "store": store[0],
                "more_stores": store[1:] or None,
                "weights": weights,
                "probe.dataset": probe,
                **shared_options(network, steps, patch_size, batch_size, seed),
            },
            assignments=assignments or [],
        )
        scores = run(settings, out, resume=resume)
        say(f"Weights: {out / 'weights.safetensors'}")
        finish({"run": str(out), "weights": str(out / "weights.safetensors"), "validation": scores}, as_json)

    lead(parse_devices(devices, nodes, strategy), work)


@app.command()
def finetune(
    dataset: Annotated[Path, typer.Option(help="Folder of an nnU-Net-format dataset.")],
    out: Out,
    weights: Start = None,
    cases: Annotated[str | None, typer.Option(metavar="N|NAME,...", help="Training cases to use.")] = None,
    split: Annotated[Path | None, typer.Option(help="JSON like nnU-Net's splits_final.json.")] = None,
    fold: Annotated[
        str | None, typer.Option(metavar="N|all", help="Fold to validate on, or cross-validate over all.")
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(metavar="STORE", help="Also learn from the unlabelled scans of a store.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, poly, warmup, halving or sawtooth.")] = None,
    transfer: Annotated[str | None, typer.Option(help="all, or encoder only.")] = None,
    twin: Annotated[bool, typer.Option("--twin", help="Also train from scratch, and compare.")] = False,
    recipe: Recipe = None,
    network: Network = None,
    steps: Steps = None,
    patch_size: Triple = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    config: Config = None,
    assignments: Set = None,
    resume: Resume = False,
    devices: DeviceCount = None,
    nodes: Nodes = None,
    strategy: Strategy = "auto",
    as_json: Json = False,
) -> None:
    """Train on a few labelled cases, from pretrained weights or from scratch (--weights none)."""
    from misfm.commands.finetune import finetune as run
    from misfm.commands.folds import cross_validate
    from misfm.commands.twins import finetune_twins
    from misfm.config import FinetuneSettings
    from misfm.resolve import resolve
    from misfm.training.devices import lead, parse_devices

    def work() -> None:
        settings: FinetuneSettings = resolve(
            FinetuneSettings,
            recipe=recipe or DEFAULT_RECIPE,
            config=config,
            options={
                "dataset": str(dataset),
                "weights": weights,
                "cases": case_choice(cases),
                "split": None if split is None else str(split),
                "fold": None if fold == ALL_FOLDS else fold,
                "unlabelled.store": unlabelled,
                "training.schedule.name": schedule,
                "transfer": transfer,
                **shared_options(network, steps, patch_size, batch_size, seed),
            },
            assignments=assignments or [],
        )
        where = out / "weights.safetensors"
        if twin and fold == ALL_FOLDS:
            raise ConfigError("--twin compares on one fold: leave it out, or give --fold a number.")
        if fold == ALL_FOLDS:
            result = cross_validate(settings, out, resume=resume)
            say_dice(result)
            where = out  # `misfm predict --run` takes the folder of folds
        elif twin:
            result = finetune_twins(settings, out, resume=resume)
            say(result["verdict"])
            if "comparison" in result:
                say(f"Report: {out / 'report.html'}")
        else:
            result = run(settings, out, resume=resume)
        say(f"Weights: {where}")
        finish({"run": str(out), "weights": str(where), **result}, as_json)

    lead(parse_devices(devices, nodes, strategy), work)


@app.command()
def compare(
    store: Annotated[Path, typer.Option(help="Folder written by `misfm ingest`.")],
    dataset: Annotated[Path, typer.Option(help="Folder of an nnU-Net-format dataset.")],
    recipes: Annotated[str, typer.Option(metavar="A,B,...", help="Recipes or pretext tasks.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of the results.")],
    networks: Annotated[str, typer.Option(metavar="A,B,...", help="Networks.")] = "unet",
    cases: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of labelled cases.")] = "5",
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Seeds of the fine-tunings.")] = "0,1,2",
    base: Annotated[str, typer.Option(help="Recipe of everything that all arms share.")] = DEFAULT_RECIPE,
    pretrain: Annotated[
        list[str] | None,
        typer.Option("--set-pretrain", metavar="[RECIPE:]KEY=VALUE", help="For all pretrainings, or one."),
    ] = None,
    finetune: Annotated[
        list[str] | None, typer.Option("--set-finetune", metavar="KEY=VALUE", help="For all fine-tunings.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that train side by side.", min=0)] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    as_json: Json = False,
) -> None:
    """Compare pretext tasks, networks and label budgets; run it again to go on or to add arms."""
    from misfm.commands.compare import compare as run
    from misfm.config import CompareSettings
    from misfm.settings import parse

    tree = {
        "store": str(store),
        "dataset": str(dataset),
        "recipes": names(recipes),
        "networks": names(networks),
        "cases": integers(cases, "--cases"),
        "seeds": integers(seeds, "--seeds"),
        "base": base,
        "pretrain": pretrain or [],
        "finetune": finetune or [],
    }
    settings = parse(CompareSettings, tree, "comparison")
    result = run(settings, out, workers=workers, scheduler=scheduler)
    say((out / "compare.md").read_text(encoding="utf-8"))
    if result["comparisons"]:
        say(f"Report: {out / 'report.html'}")
    finish(result, as_json)
    if result["failed"]:
        raise typer.Exit(1)
