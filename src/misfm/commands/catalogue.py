"""What can be chosen and set: recipes, networks, pretext tasks, and the settings of each command.

Everything is read from the code itself: settings from their pydantic models, networks from the signature and
docstring of their builder, recipes from their YAML and the comment at its top.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from misfm.config import CompareSettings, FinetuneSettings, PretrainSettings
from misfm.data.record import IngestSettings
from misfm.models import Backbone
from misfm.models.base import NETWORKS
from misfm.pretext.base import PRETEXTS
from misfm.resolve import read_recipe, recipe_names
from misfm.settings import Settings

Option = dict[str, Any]
"""``type``, ``description`` and, unless a value is required, ``default``; ready for JSON."""
Options = dict[str, Option]

COMMANDS: Mapping[str, type[Settings]] = {
    "pretrain": PretrainSettings,
    "finetune": FinetuneSettings,
    "compare": CompareSettings,
    "ingest": IngestSettings,
}
GIVEN = ("in_channels", "patch_size")
"""Parameters of a network's builder that follow from data and settings."""
LONG = 60
"""Characters above which the texts of a list get a line each."""
_WORDS = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "mapping"}


def find(name: str) -> dict[str, Any] | None:
    """Describe what a list, recipe, network, pretext task or setting is called; None where nothing is.

    A name may stand for several things; then each has its own description under its kind.
    """
    if name in LISTS:
        return {"kind": name, **LISTS[name]()}
    found = {kind: describe(name) for kind, (known, describe) in KINDS.items() if name in known()}
    if found:
        return {"kind": ", ".join(found), **(found if len(found) > 1 else next(iter(found.values())))}
    settings = {command: options for command in COMMANDS if (options := matching(command, name))}
    return {"kind": "settings", **settings} if settings else None


def known_names() -> list[str]:
    """Everything that :func:`find` knows, settings by their full dotted name."""
    names = [*LISTS, *(name for known, _ in KINDS.values() for name in known())]
    return [*names, *(key for kind in COMMANDS.values() for key in settings_of(kind))]


def matching(command: str, name: str) -> Options:
    """The settings of a command that a dotted name, or the last part of one, stands for, with those below."""
    name = name.removeprefix(f"{command}.")
    return {
        key: option
        for key, option in settings_of(COMMANDS[command]).items()
        if key == name or key.startswith(f"{name}.") or key.endswith(f".{name}")
    }


def all_settings() -> dict[str, Options]:
    """The settings of every command by dotted key."""
    return {command: settings_of(kind) for command, kind in COMMANDS.items()}


def settings_of(kind: type[Settings], defaults: Settings | None = None) -> Options:
    """The settings of one class by dotted key, those of the groups within it included.

    Args:
        kind: the class.
        defaults: where values come from that are given for the class as a whole, as the default of a group.
    """
    schema = kind.model_json_schema()
    options: Options = {}
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if defaults is not None:
            default = getattr(defaults, name)
        option: Option = {"type": type_of(schema["properties"][name], schema.get("$defs", {}))}
        group = group_of(field)
        whole = default if isinstance(default, Settings) else None
        if default is not PydanticUndefined and whole is None:
            option["default"] = to_jsonable_python(default)
        options[name] = {**option, "description": " ".join((field.description or "").split())}
        if group is not None:
            nested = settings_of(group, whole)
            options |= {f"{name}.{key}": value for key, value in nested.items()}
    return options


def group_of(field: FieldInfo) -> type[Settings] | None:
    """The class of a setting that is itself a group of settings, also where it may be null."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, Settings)), None)


def type_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows: ``int >= 1``, ``2 x float > 0``, ``'all' or 'encoder'``."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
        if "properties" in schema:
            return "settings"
    if "anyOf" in schema:
        return " or ".join(type_of(one, definitions) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") != "array":
        kind = str(schema.get("type", "any"))
        return _WORDS.get(kind, kind) + _bounds(schema)
    if "prefixItems" not in schema:
        least = f", at least {schema['minItems']}" if "minItems" in schema else ""
        return f"list of {type_of(schema.get('items', {}), definitions)}{least}"
    items = [type_of(item, definitions) for item in schema["prefixItems"]]
    if len(set(items)) > 1:
        return f"[{', '.join(items)}]"
    return f"{len(items)} x ({items[0]})" if " x " in items[0] else f"{len(items)} x {items[0]}"


def _bounds(schema: Mapping[str, Any]) -> str:
    lower, upper = (schema.get(key, schema.get(f"exclusive{key.title()}")) for key in ("minimum", "maximum"))
    if lower is not None and upper is not None:
        opening, closing = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
        return f" in {opening}{lower:g}, {upper:g}{closing}"
    if lower is not None:
        return f" {'>=' if 'minimum' in schema else '>'} {lower:g}"
    return "" if upper is None else f" {'<=' if 'maximum' in schema else '<'} {upper:g}"


def describe_pretext(name: str) -> dict[str, Any]:
    """A pretext task: what it is, what of its weights transfers, and its options."""
    task = PRETEXTS.get(name)
    own = inspect.getdoc(task) or ""
    text = _module_doc(task) if "see the module's docstring" in own else own
    transfer = "all" if task.trains_decoder else "encoder"
    return {"name": name, "summary": _first_line(text), "transfer": transfer, "options": settings_of(task)}


def describe_network(name: str) -> dict[str, Any]:
    """A network: what it is, and its options."""
    builder = NETWORKS.get(name)
    return {"name": name, "summary": _first_line(_module_doc(builder)), "options": network_options(builder)}


def network_options(builder: Callable[..., Backbone]) -> Options:
    """The options of a network, from signature and docstring of its builder."""
    function = builder.func if isinstance(builder, partial) else builder
    hints, texts = get_type_hints(function), documented_arguments(inspect.getdoc(function) or "")
    options: Options = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        if name not in GIVEN:
            schema = TypeAdapter(hints[name]).json_schema() if name in hints else {}
            option = {"type": type_of(schema, schema.get("$defs", {}))}
            if parameter.default is not inspect.Parameter.empty:
                option["default"] = to_jsonable_python(parameter.default)
            options[name] = {**option, "description": texts.get(name, "")}
    return options


def documented_arguments(docstring: str) -> dict[str, str]:
    """What the ``Args:`` of a docstring say of each argument."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def describe_recipe(name: str) -> dict[str, Any]:
    """A recipe: the comment at its top, and the settings of both trainings on top of the code's defaults."""
    return {
        "name": name,
        "summary": recipe_text(name),
        "pretrain": read_recipe(name, "pretrain"),
        "finetune": read_recipe(name, "finetune"),
    }


def recipe_text(name: str) -> str:
    """The comment at the top of a recipe."""
    lines = (files("misfm") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:count])


def _summaries(names: Callable[[], list[str]], describe: Callable[[str], dict[str, Any]]) -> dict[str, str]:
    return {name: re.split(r"(?<=\.)\s", describe(name)["summary"])[0] for name in names()}


def _module_doc(thing: Callable[..., object]) -> str:
    function = thing.func if isinstance(thing, partial) else thing
    return inspect.getdoc(sys.modules[function.__module__]) or inspect.getdoc(function) or ""


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


KINDS: Mapping[str, tuple[Callable[[], list[str]], Callable[[str], dict[str, Any]]]] = {
    "recipe": (recipe_names, describe_recipe),
    "network": (NETWORKS.names, describe_network),
    "pretext task": (PRETEXTS.names, describe_pretext),
}
"""What has names: all of them, and the description of one."""

LISTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "recipes": lambda: _summaries(*KINDS["recipe"]),
    "networks": lambda: _summaries(*KINDS["network"]),
    "pretexts": lambda: _summaries(*KINDS["pretext task"]),
    "settings": all_settings,
}
"""What ``misfm info`` lists."""


def text_of(description: Mapping[str, Any]) -> Iterator[str]:
    """Lines that show a description to people: a name and its value, an option a line."""
    width = max(14, *map(len, description))
    for key, value in description.items():
        if isinstance(value, Mapping) and any("description" in _mapping(one) for one in value.values()):
            yield key
            yield from (f"  {line}" for line in option_lines(value))
        elif "summary" in _mapping(value):
            yield key
            yield from (f"  {line}" for line in text_of(value))
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield f"{key:{width}s} {len(value)}"
            for one in value:
                yield from ("", *(f"  {line}" for line in text_of(one)))
        elif isinstance(value, list) and any(len(str(one)) > LONG for one in value):
            yield f"{key:{width}s} {len(value)}"
            yield from (f"  {one}" for one in value)
        else:
            yield f"{key:{width}s} {value if isinstance(value, str) else json.dumps(value)}"


def option_lines(options: Mapping[str, Option]) -> Iterator[str]:
    """One line an option: name, type, default and description."""
    width = max(map(len, options), default=0)
    for key, option in options.items():
        default = f", default {json.dumps(option['default'])}" if "default" in option else ""
        yield f"{key:{width}s}  {option['type']}{default}: {option['description']}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
