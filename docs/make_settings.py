"""Write docs/settings.md, the reference of all settings: ``python docs/make_settings.py``.

A test holds that the committed file is what this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from misfm.commands import catalogue

INTRODUCTION = """\
# Settings

Written by `docs/make_settings.py` from the code; do not edit by hand. `misfm info settings` shows the same,
and `misfm info NAME` a single recipe, network, pretext task or setting (`misfm info training.optimizer.lr`).

A run's settings are put together from a recipe (`--recipe`, by default `small`), a YAML file (`--config`),
the options of the command and `--set KEY=VALUE`; the last one wins. Defaults are those of the code, before
any recipe; `misfm info RECIPE` shows what a recipe sets. What null stands for is said beside it.
"""

COMMANDS = {
    "pretrain": "Self-supervised pretraining on a store.",
    "finetune": "Supervised training on a dataset in nnU-Net's format.",
    "compare": "Pretext tasks x numbers of labelled cases x seeds, set by the options of the command; "
    "`pretrain` and `finetune` take settings of the two commands above.",
    "ingest": "How scans become a store, by `--spacing` and `--intensity`.",
}


def make() -> str:
    """Return the whole reference."""
    return "\n".join([INTRODUCTION, *_commands(), *_pretexts(), *_networks()])


def _commands() -> Iterator[str]:
    for command, options in catalogue.all_settings().items():
        yield f"## misfm {command}\n\n{COMMANDS[command]}\n"
        yield from _table(options)


def _pretexts() -> Iterator[str]:
    yield "## Options of pretext tasks\n\nSet as `pretext.options.KEY`; `pretext.name` chooses the task.\n"
    yield from _section("pretext task")


def _networks() -> Iterator[str]:
    yield "## Options of networks\n\nSet as `network.options.KEY`; `network.name` chooses the network.\n"
    yield from _section("network")


def _section(kind: str) -> Iterator[str]:
    names, describe = catalogue.KINDS[kind]
    for name in names():
        found = describe(name)
        yield f"### {name}\n\n{_cell(found['summary'])}\n"
        yield from _table(found["options"])


def _table(options: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    for key, option in options.items():
        no_default = "" if option["type"] == "settings" else "required"
        default = f"`{json.dumps(option['default'])}`" if "default" in option else no_default
        yield f"| `{key}` | {_cell(option['type'])} | {default} | {_cell(option['description'])} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(make(), encoding="utf-8")
