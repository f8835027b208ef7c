"""``python -m misfm``: the command line, which answers signals before the rest of it is loaded."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from misfm.signals import Interrupted, handled, requested
from misfm.terminal import farewell


def main() -> NoReturn:
    """Run the command line."""
    try:
        with handled(farewell(sys.argv)):
            from misfm import cli

            try:
                cli.main()
            finally:
                if requested():  # all is said, and what the interpreter tidies up takes seconds
                    sys.stdout.flush()
                    os._exit(1)
    except Interrupted:
        print(farewell(sys.argv), file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
