"""The application: errors become one sentence and an exit status.

Nothing heavy is imported before a command runs, so that ``misfm --help`` is instant.
"""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import typer

from misfm.cli.output import say
from misfm.errors import ConfigError, MisfmError
from misfm.memory import is_out_of_memory
from misfm.ranks import started_world
from misfm.signals import Interrupted, handled, requested
from misfm.terminal import farewell, how_to_go_on, show_log

app = typer.Typer(
    help="Scans in, pretrained weights out; few labels in, masks and honest numbers out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing boxes with rich costs more than everything else in --help
)

ON_MANY = ("pretrain", "finetune")
"""Commands that several processes do together."""
WITH_WORKERS = ("ingest", "predict", "evaluate", "compare")
"""Commands that start processes of their own."""
INTERRUPTED = 130
"""Status with which typer answers a KeyboardInterrupt."""


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
            check_alone(sys.argv[1:2])
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
    except Exception as error:
        if is_out_of_memory(error):
            say("Error: There is not enough memory; use a machine with more, or smaller patches and batches.")
            return 1
        if not requested():
            raise
        say(farewell(sys.argv))  # an import that was interrupted can make a library raise anything
        return 1
    return 0


def check_alone(command: list[str]) -> None:
    """Refuse to do in each of several processes what one does.

    Raises:
        ConfigError: says so, in the first of them; the others end.
    """
    started = started_world()
    if started is None or not command or command[0] in ON_MANY or command[0].startswith("-"):
        return
    if started.rank:
        raise SystemExit(2)
    more = "; --workers or --scheduler give it more" if command[0] in WITH_WORKERS else ""
    raise ConfigError(
        f"`misfm {command[0]}` is done by one process, and {started.by} has started {started.size}: start it "
        f"without, or as one task{more}."
    )
