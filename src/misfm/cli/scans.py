"""Commands on scans: bringing them in, what a file or folder is, which to label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misfm.cli.app import app
from misfm.cli.options import Json, numbers
from misfm.cli.output import finish, say
from misfm.terminal import Progress
from misfm.text import printable


@app.command()
def ingest(
    sources: Annotated[list[Path], typer.Argument(help="Files and trees of scans, or nnU-Net datasets.")],
    store: Annotated[Path, typer.Option(help="Folder of the store; made where missing.")],
    spacing: Annotated[str, typer.Option(metavar="D,H,W|native", help="Mm per voxel.")] = "native",
    intensity: Annotated[
        str,
        typer.Option(help="auto, ct, mr, pet, ct:LOW,HIGH (intensity window, HU); ct/pet: one a channel."),
    ] = "auto",
    channels: Annotated[
        str, typer.Option(metavar="apart|together", help="Channels of a case: a volume each, or one of all.")
    ] = "apart",
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
    from misfm.settings import parse

    grid = "native" if spacing == "native" else numbers(spacing, float, "--spacing")
    given = {"spacing": grid, "intensity": intensity, "channels": channels}
    settings = parse(IngestSettings, given, "ingest")
    result, line = ingest_scans(
        sources, store, settings, workers=workers, scheduler=scheduler, pseudonyms=pseudonyms
    )
    say(line)
    finish(result, as_json)
    if not any(result[outcome] for outcome in ("added", "skipped", "duplicates")):
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of images and label maps, as downloaded.")],
    out: Annotated[Path, typer.Option(help="Folder of the dataset to write.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; no more.")] = False,
    as_json: Json = False,
) -> None:
    """Bring labelled scans (Decathlon, BraTS, pairs of files or folders) into nnU-Net's layout."""
    from misfm.commands.convert import convert_source

    result, lines = convert_source(source, out, dry_run=dry_run)
    for line in lines:
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
    check: Annotated[
        bool, typer.Option("--check", help="Read all of a store or dataset, verify it.")
    ] = False,
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


@app.command()
def suggest(
    store: Annotated[Path, typer.Option(help="Store of the scans.")],
    count: Annotated[int, typer.Option("-n", "--count", help="Scans to suggest.", min=1)] = 5,
    run: Annotated[
        str | None, typer.Option(help="Fine-tuning so far: suggests what it is least sure of.")
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="SOURCE", help="With no run: whose features tell what looks alike.")
    ] = "builtin",
    as_json: Json = False,
) -> None:
    """Say which scans of a store to label next, or first, and why; not shown to beat a random choice."""
    from misfm.commands.suggest import suggest as choose

    with Progress("Looking at scans") as progress:
        result = choose(store, count, run=run, weights=weights, progress=progress.update)
    by, considered = result["by"], result["considered"]
    say(f"Of {considered} scans without labels, by {by}:")
    for number, one in enumerate(result["suggested"], start=1):
        print(printable(f"{number}. {one['case']}  {one['source']}\n   {one['why']}"))
    say(result["evidence"])
    finish(result, as_json)
