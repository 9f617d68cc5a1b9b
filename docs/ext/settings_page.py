"""The settings reference: every field of every section of a run's configuration, from its dataclass."""

import dataclasses
import types
import typing
from typing import Any

from refimpl.commands.start.toml_text import toml_value
from refimpl.commands.train_help import field_docs
from refimpl.run.config import Config, Stage
from refimpl.run.presets import load_config, preset_names
from refimpl.tables import to_table

PLURALS = {str: "texts", int: "integers", float: "numbers", bool: "booleans"}
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}
HEAD = """\
# Settings

Every setting of `refimpl train`, section by section, as its dataclass declares it: in a TOML file `[train]` and then
`steps = 100`, on the command line `--train.steps 100`. What a preset sets otherwise than the default is listed with
the setting.
"""


def settings_page() -> str:
    """The page, as Markdown."""
    presets = {name: to_table(load_config(name)) for name in preset_names()}
    docs, hints = field_docs(Config), typing.get_type_hints(Config)
    lines = [HEAD]
    for entry in dataclasses.fields(Config):
        if dataclasses.is_dataclass(hints[entry.name]):
            own = {preset: table[entry.name] for preset, table in presets.items()}
            lines += _section(entry.name, docs[entry.name], typing.cast(type, hints[entry.name]), own)
    lines += _section("stages", f"{docs['stages']} Each is a table of its own, `[[stages]]`.", Stage, {})
    return "\n".join(lines) + "\n"


def _section(name: str, doc: str, settings: type, presets: dict[str, dict[str, Any]]) -> list[str]:
    docs, hints = field_docs(settings), typing.get_type_hints(settings)
    lines = [f"## {name}", "", doc, ""]
    for entry in dataclasses.fields(settings):
        default = default_of(entry)
        facts = [type_name(hints[entry.name]), "required" if default is _REQUIRED else _shown(default)]
        others: dict[str, list[str]] = {}  # which presets have a value of their own
        for preset, table in presets.items():
            if table[entry.name] != to_plain(default):
                others.setdefault(_shown(table[entry.name]), []).append(f"`{preset}`")
        own = [f"{value} in {', '.join(names)}" for value, names in others.items()]
        lines += [f"### {name}.{entry.name}", "", " ".join(docs[entry.name].split()), ""]
        lines += ["; ".join([facts[0], _default(facts[1]), *own]) + ".", ""]
    return lines


_REQUIRED = object()


def default_of(entry: dataclasses.Field) -> Any:
    """The default of a field, or a mark of its own where there is none."""
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return _REQUIRED if entry.default is dataclasses.MISSING else entry.default


def to_plain(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, tables for dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value)
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def type_name(hint: Any) -> str:
    """A type in words: text, integer, list of numbers, one of …"""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in NAMES:
        return NAMES[hint]
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{toml_value(value)}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(kind) for kind in arguments if kind is not type(None)) + ", or left out"
    if origin is tuple:
        return f"{'list' if Ellipsis in arguments else 'pair'} of {_plural(arguments[0])}"
    return f"table of {hint.__name__}"


def _plural(hint: Any) -> str:
    name = type_name(hint)
    return PLURALS.get(hint) or (
        f"pairs{name.removeprefix('pair')}" if name.startswith("pair") else f"{name}s"
    )


def _default(shown: str) -> str:
    return shown if shown == "required" else f"default {shown}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
        return "that of its own section"
    return f"`{toml_value(value)}`"
