"""View: a local page that shows scans, label maps and where these differ."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from misfm.errors import ConfigError, DataError
from misfm.inference.predictions import FILE_NAME as PREDICTIONS
from misfm.signals import Interrupted
from misfm.training.run import RunFolder
from misfm.viewer import Collection, Session, ViewerServer, collect, results
from misfm.viewer.collect import References


def collection_of(path: Path, references: Path | None = None) -> Collection:
    """Find out what a path holds and return it as cases to be looked at.

    Args:
        path: scan, DICOM folder, tree of scans, store, dataset, predictions, fine-tuning or cross-validation.
        references: label maps that people drew, of predictions and scans: a folder with the names of the
            cases, or the file of the one that is viewed.

    Raises:
        DataError: there is nothing, or nothing that can be shown.
        ConfigError: references of what has its own.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path.")
    for holds, open_it in (
        (path / PREDICTIONS, results.predictions),
        (path / "store.json", collect.store),
        (path / "dataset.json", collect.dataset),
        (RunFolder(path).config, results.run),
        (path / "folds.json", results.folds),
    ):
        if holds.exists():
            return _opened(open_it, path, references)
    if path.is_dir() and any(RunFolder(fold).config.exists() for fold in path.glob("fold_*")):
        return _opened(results.folds, path, references)
    if path.is_file() and path.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise DataError(f"{path} is a weights file, and there is nothing to see; give its run folder.")
    return collect.scans(path, References(references))


def _opened(open_it: Callable[..., Collection], path: Path, references: Path | None) -> Collection:
    if open_it is results.predictions:
        return results.predictions(path, References(references))
    if references is not None:
        raise ConfigError(f"{path} has its own label maps: leave --references out.")
    return open_it(path)


def view(
    path: Path,
    *,
    references: Path | None = None,
    port: int = 0,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Serve the page until the command is stopped.

    Args:
        path: what is viewed, see :func:`collection_of`.
        references: see there.
        port: to listen at; 0 takes a free one.
        browser: open the page in the browser of this machine.
        say: gets the address, token included, before anything else.

    Returns:
        ``title`` of what was viewed, and ``cases``, the name of each with its Dice as far as it is known.

    Raises:
        DataError, ConfigError: see :func:`collection_of`; or the port is taken.
    """
    session = Session(collection_of(path, references))
    try:
        server = ViewerServer(session, port)
    except OSError as error:
        raise ConfigError(f"Port {port} cannot be used ({error.strerror}); choose another --port.") from error
    with server:
        say(server.address)
        session.score_in_background()
        if browser:
            webbrowser.open(server.address)
        with suppress(Interrupted):  # which is how it ends
            server.serve_forever(poll_interval=0.2)
    listing = session.listing()
    return {"title": listing["title"], "cases": {case["name"]: case["dice"] for case in listing["cases"]}}
