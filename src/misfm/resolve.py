"""How the settings of a run are put together: recipe, then YAML file, then options, then ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from misfm.config import PretrainSettings, RunSettings, is_own_task, renamed
from misfm.documents import Malformed, parse_yaml, read_yaml
from misfm.errors import ConfigError
from misfm.registry import closest
from misfm.settings import Tree, parse

RunSettingsT = TypeVar("RunSettingsT", bound=RunSettings)


def recipe_names() -> list[str]:
    """Names of the recipes shipped with misfm."""
    folder = files("misfm") / "recipes"
    names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return sorted(names)


def resolve(
    kind: type[RunSettingsT],
    *,
    recipe: str,
    config: Path | None = None,
    options: Mapping[str, Any],
    assignments: Sequence[str] = (),
) -> RunSettingsT:
    """Put a run's settings together: recipe, then file, then options, then ``--set``; the last one wins.

    Args:
        kind: :class:`PretrainSettings` or :class:`FinetuneSettings`.
        recipe: name of a shipped recipe, unless the file names another with ``extends``, or with ``recipe``
            as the ``config.yaml`` of a run folder does.
        config: a YAML file of settings.
        options: dotted keys and values of command-line options; None values are left out.
        assignments: ``"a.b=value"`` strings, values in YAML.

    Raises:
        ConfigError: unknown recipe or key (with the nearest name), or a value that is not allowed.
    """
    overrides = read_file(config) if config is not None else {}
    name = str(overrides.pop("extends", overrides.get("recipe", recipe)))
    section = "pretrain" if kind is PretrainSettings else "finetune"
    sources = [read_recipe(name, section), {"recipe": name, **overrides}]
    sources += [nest(key, value) for key, value in options.items() if value is not None]
    assigned: Tree = {}
    for assignment in assignments:  # put together first: options may be given before the name they are of
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set takes KEY=VALUE, got '{assignment}'.")
        assigned = merge(assigned, nest(key.strip(), load_yaml(text, f"--set {assignment}")))
    sources.append(assigned)
    task = reduce(merge, sources).get("pretext", {})
    if isinstance(task, dict) and is_own_task(task.get("name")):
        sources = [in_words_of_today(source) for source in sources]
    return parse(kind, reduce(merge, sources), "settings")


def in_words_of_today(tree: Tree) -> Tree:
    """Return settings with the options of their pretext task under today's words, before they are merged."""
    task = tree.get("pretext")
    if not (isinstance(task, dict) and isinstance(task.get("options"), dict)):
        return tree
    return {**tree, "pretext": {**task, "options": renamed(task["options"])}}


def read_recipe(name: str, section: str) -> Tree:
    """Return the ``pretrain`` or ``finetune`` settings of a shipped recipe, on top of the one it extends."""
    if name not in recipe_names():
        raise ConfigError(f"There is no recipe '{name}'; {closest(name, recipe_names())}")
    recipe = load_yaml((files("misfm") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"), name)
    parent = recipe.get("extends")
    return merge(read_recipe(parent, section) if parent else {}, recipe.get(section) or {})


def read_file(path: Path) -> Tree:
    """Read a YAML file of settings."""
    try:
        tree = read_yaml(path)
    except (OSError, Malformed) as error:
        raise ConfigError(f"Cannot read the settings in {path}: {error}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no settings: expected lines such as 'batch_size: 2'.")
    return tree


def load_yaml(text: str, origin: str) -> Any:
    """Parse YAML without running anything in it."""
    try:
        return parse_yaml(text)
    except Malformed as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}.") from error


def merge(base: Tree, overrides: Tree) -> Tree:
    """Return ``base`` with the values of ``overrides``; mappings are merged key by key.

    Where another network or pretext task is named than in ``base``, the ``options`` of that do not stay.
    """
    merged = dict(base)
    if "name" in base and overrides.get("name", base["name"]) != base["name"]:
        merged.pop("options", None)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def nest(key: str, value: Any) -> Tree:
    """Turn ``("a.b", 1)`` into ``{"a": {"b": 1}}``."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)
