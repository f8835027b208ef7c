"""The command line: verbs turn into recipe calls, errors into one sentence and an exit status.

Nothing heavy is imported before a command runs, so that ``misfm --help`` is instant.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from misfm.cli_options import (
    BatchSize,
    Config,
    Json,
    Network,
    Out,
    Recipe,
    Resume,
    Seed,
    Set,
    Start,
    Steps,
    Triple,
    Weights,
    case_choice,
    integers,
    names,
    numbers,
    shared_options,
)
from misfm.cli_output import finish, say, say_dice
from misfm.errors import ConfigError, MisfmError
from misfm.signals import Interrupted, handled, requested
from misfm.terminal import Progress, farewell, how_to_go_on, show_log
from misfm.text import printable

if TYPE_CHECKING:
    from misfm.config import FinetuneSettings, PretrainSettings

app = typer.Typer(
    help="Scans in, pretrained weights out; few labels in, masks and honest numbers out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing boxes with rich costs more than everything else in --help
)

DEFAULT_RECIPE = "small"
ALL_FOLDS = "all"
INTERRUPTED = 130
"""Status with which typer answers a KeyboardInterrupt."""


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
def ingest(
    sources: Annotated[list[Path], typer.Argument(help="Files and trees of scans, or nnU-Net datasets.")],
    store: Annotated[Path, typer.Option(help="Folder of the store; made where missing.")],
    spacing: Annotated[str, typer.Option(metavar="D,H,W|native", help="Mm per voxel.")] = "native",
    intensity: Annotated[
        str, typer.Option(help="auto, ct, mr, or ct:LOW,HIGH (intensity window, HU).")
    ] = "auto",
    workers: Annotated[int, typer.Option(help="Processes; 0 works in this one.", min=0)] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use instead.")] = None,
    pseudonyms: Annotated[
        Path | None,
        typer.Option(metavar="KEYFILE", help="Keep pseudonyms instead of names; this file has the key."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring scans (NIfTI, NRRD, MetaImage, DICOM) into a store; run it again to add what is new."""
    from misfm.commands.ingest import ingest_scans
    from misfm.data.record import IngestSettings

    settings = IngestSettings(
        spacing="native" if spacing == "native" else numbers(spacing, float, "--spacing"), intensity=intensity
    )
    result, line = ingest_scans(
        sources, store, settings, workers=workers, scheduler=scheduler, pseudonyms=pseudonyms
    )
    say(line)
    finish(result, as_json)
    if not any(result[outcome] for outcome in ("added", "skipped", "duplicates")):
        raise typer.Exit(1)


@app.command()
def pretrain(
    store: Annotated[
        str, typer.Option(help="Folder written by `misfm ingest`, or 'phantom[:COUNT]' for generated scans.")
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
    as_json: Json = False,
) -> None:
    """Pretrain a network on the scans of a store, without labels."""
    from misfm.commands.pretrain import pretrain as run
    from misfm.config import PretrainSettings
    from misfm.resolve import resolve

    settings: PretrainSettings = resolve(
        PretrainSettings,
        recipe=recipe or DEFAULT_RECIPE,
        config=config,
        options={
            "store": store,
            "weights": weights,
            "probe.dataset": probe,
            **shared_options(network, steps, patch_size, batch_size, seed),
        },
        assignments=assignments or [],
    )
    scores = run(settings, out, resume=resume)
    say(f"Weights: {out / 'weights.safetensors'}")
    finish({"run": str(out), "weights": str(out / "weights.safetensors"), "validation": scores}, as_json)


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
    as_json: Json = False,
) -> None:
    """Train on a few labelled cases, from pretrained weights or from scratch (--weights none)."""
    from misfm.commands.finetune import finetune as run
    from misfm.commands.folds import cross_validate
    from misfm.commands.twins import finetune_twins
    from misfm.config import FinetuneSettings
    from misfm.resolve import resolve

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


@app.command()
def predict(
    run: Annotated[
        list[str], typer.Option(help="Run, weights file or folder of folds; several label together.")
    ],
    inputs: Annotated[list[Path], typer.Option("--input", help="Files, DICOM folders or trees of scans.")],
    output: Annotated[Path, typer.Option(help="Folder for the label maps, CASE.nii.gz.")],
    overlap: Annotated[float, typer.Option(help="Overlap of windows.", min=0, max=0.9)] = 0.5,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over mirrors, along axes mirrored in training.")
    ] = False,
    more_inputs: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Write a label map for each scan, on the scan's own grid; --input takes several paths."""
    from misfm.commands.predict import predict_files

    with Progress("Predicting") as progress:
        paths = [*inputs, *(more_inputs or [])]
        prediction = predict_files(run, paths, output, overlap=overlap, tta=tta, progress=progress.update)
    failed = f", {len(prediction.failed)} scan(s) failed" if prediction.failed else ""
    say(f"{output}: {len(prediction.written)} label map(s) written{failed}")
    written = {case: str(path) for case, path in prediction.written.items()}
    finish({"written": written, "failed": dict(prediction.failed)}, as_json)
    if prediction.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="Folder of predicted label maps.")],
    references: Annotated[Path, typer.Option(help="Folder of reference label maps of the same names.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Mm, of the surface Dice; default one voxel diagonal.", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Score label maps: Dice, HD95, ASSD, surface Dice, with intervals."""
    from misfm.commands.evaluate import evaluate as run

    with Progress("Evaluating") as progress:
        result = run(predictions, references, out, tolerance_mm=tolerance, progress=progress.update)
    for folder, absent in result["missing"].items():
        if absent:
            say(f"Not scored, {folder} missing: {', '.join(absent)}")
    say_dice(result)
    finish({"out": str(out), "mean": result["mean"], "interval95": result["interval95"]}, as_json)


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


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_WEIGHTS", help="Run folder, file or name.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="nnunet, safetensors, onnx or one you added.")],
    out: Annotated[Path, typer.Option(help="File to write; for nnunet a folder.")],
    dataset: Annotated[
        Path | None, typer.Option(help="For nnunet: the dataset's folder in nnUNet_preprocessed.")
    ] = None,
    patch_size: Triple = None,
    as_json: Json = False,
) -> None:
    """Hand weights over to nnU-Net or ONNX, or convert a published checkpoint to a weights file."""
    from misfm.commands.export import export as run

    size = None if patch_size is None else numbers(patch_size, int, "--patch-size")
    result = run(source, to, out, dataset=dataset, patch_size=size)
    for line in (*result["notes"], *(f"Written: {path}" for path in result["written"])):
        say(line)
    finish(result, as_json)


@app.command()
def info(
    path: Annotated[
        str,
        typer.Argument(
            help="Store, dataset, run or weights; 'recipes', 'networks', 'pretexts', 'settings' or "
            "'published' for a list; or a name in one."
        ),
    ],
    check: Annotated[bool, typer.Option("--check", help="Read all of a store and verify it.")] = False,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="List the quarantined scans of a store, with evidence.")
    ] = False,
    release: Annotated[
        str | None, typer.Option(metavar="NAME", help="Put back a quarantined scan that you have looked at.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a store, dataset, run folder, weights file, foreign checkpoint, recipe or setting is."""
    from misfm.commands.catalogue import text_of
    from misfm.commands.info import describe_path
    from misfm.commands.review import review

    if check or quarantine or release is not None:
        description = review(path, check=check, quarantine=quarantine, release=release)
    else:
        description = describe_path(path)
    if not as_json:
        print(printable("\n".join(text_of(description))))
    finish(description, as_json)
    if not description.get("whole", True):
        raise typer.Exit(1)


def main() -> NoReturn:
    """Run the command line; the exit status is 0 done, 1 failed or stopped, 2 wrong usage or settings."""
    try:
        with handled(farewell(sys.argv)):
            sys.exit(run())
    except Interrupted:  # while the end of the command was being told
        say(farewell(sys.argv))
        sys.exit(1)


def run() -> int | str | None:
    """Run the command line and say what came of it; returns the exit status."""
    try:
        with show_log(logging.getLogger("misfm")):
            app()
    except MisfmError as error:
        say(f"Error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        say(f"Error: {error.filename or 'The system'}: {error.strerror or error}.")
        return 1
    except Interrupted as stopped:
        say(f"Error: {stopped}: {how_to_go_on(sys.argv)}." if str(stopped) else farewell(sys.argv))
        return 1
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            say(farewell(sys.argv))
            return 1
        return stop.code
    except Exception:
        if not requested():
            raise
        say(farewell(sys.argv))  # an import that was interrupted can make a library raise anything
        return 1
    return 0
