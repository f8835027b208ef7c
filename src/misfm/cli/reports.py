"""Commands that show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misfm.cli.app import app
from misfm.cli.options import Json
from misfm.cli.output import finish, say


@app.command()
def view(
    path: Annotated[
        Path, typer.Argument(help="Run, scan or folder of scans, store, dataset or predictions.")
    ],
    references: Annotated[
        Path | None,
        typer.Option(help="Label maps that people drew, for predictions and scans: folder, or a file."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in this machine's browser.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Look at scans, references and predictions in a browser, on this machine alone; Ctrl-C ends it."""
    from misfm.commands.view import view as serve

    def tell(address: str) -> None:
        print(address, flush=True)
        say("Open this address in a browser on this machine; Ctrl-C ends the viewer.")

    finish(serve(path, references=references, port=port, browser=browser, say=tell), as_json)
