"""The command line: verbs turn into calls of commands, a file for each kind of verb."""

from misfm.cli import prediction, reports, scans, training  # noqa: F401
from misfm.cli.app import app, main

ORDER = (
    *("demo", "ingest", "convert", "info", "suggest"),
    *("pretrain", "finetune", "predict", "evaluate", "compare", "view", "export"),
)
"""Of the commands in ``misfm --help``: the way of the data."""
app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))

__all__ = ["app", "main"]
