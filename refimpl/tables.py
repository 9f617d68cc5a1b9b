"""Nested tables (TOML, JSON) ↔ frozen dataclasses, with errors that name the nearest key."""

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from refimpl.checks import check_integer
from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.printable import one_line

T = TypeVar("T")


def from_table(cls: type[T], table: Any, source: str) -> T:
    """Builds a dataclass, with dataclasses in it, from nested dicts.

    source  the file the table came from, for messages
    Raises InputError for an unknown key (naming the nearest), a missing key, or a value of the wrong type.
    """
    return _build(cls, cls, table, source, "")


def parsed_json(text: str | bytes) -> Any:
    """JSON as Python's values. Raises ValueError for anything else, and for what is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def to_table(value: Any) -> dict[str, Any]:
    """The dataclass as plain JSON values, from which `from_table` builds an equal one."""
    return json.loads(json.dumps(dataclasses.asdict(value), allow_nan=False))


def _build(root: type, cls: type, table: Any, source: str, where: str) -> Any:
    if not isinstance(table, dict):
        raise InputError(f"{source}: {where.rstrip('.') or 'all of it'} must be a table, not {table!r:.200}")
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in known:
            near = _nearest(root, key, known, where)
            raise InputError(f"{source}: unknown key {where}{one_line(key)}; did you mean {near}?")
    values = {}
    for name, entry in known.items():
        if name in table:
            values[name] = _value(root, hints[name], table[name], source, f"{where}{name}")
        elif dataclasses.is_dataclass(hints[name]) and _is_required(entry):
            values[name] = _build(root, typing.cast(type, hints[name]), {}, source, f"{where}{name}.")
        elif _is_required(entry):
            raise InputError(f"{source}: {where}{name} is missing")
    built = cls(**values)  # first, as it knows the range of each
    for name, value in values.items():
        if type(value) is int:
            check_integer(f"{source}: {where}{name}", value)
    return built


def _value(root: type, hint: Any, value: Any, source: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(root, typing.cast(type, hint), value, source, f"{where}.")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(root, next(a for a in arguments if a is not type(None)), value, source, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{source}: {where} must be a list, not {value!r:.200}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(
                _value(root, arguments[0], item, source, f"{where}[{i}]") for i, item in enumerate(value)
            )
        if len(value) != len(arguments):
            raise InputError(f"{source}: {where} must have {len(arguments)} entries, not {len(value)}")
        pairs = zip(arguments, value, strict=True)
        return tuple(
            _value(root, kind, item, source, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs)
        )
    if hint is float and type(value) is int:
        check_integer(f"{source}: {where}", value)
        return float(value)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(
                f"{source}: {where} {value!r:.200} is unknown; use {', '.join(map(str, arguments))}"
            )
        return value
    if type(value) is not hint:
        raise InputError(f"{source}: {where} must be {hint.__name__}, not {value!r:.200}")
    return value


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _nearest(root: type, key: str, known: dict[str, Any], where: str) -> str:
    """The most similar key of this table, or of any table when nothing here is as similar."""
    candidates = {name: where + name for name in known}
    for section, kind in typing.get_type_hints(root).items():
        if dataclasses.is_dataclass(kind):
            for entry in dataclasses.fields(kind):
                candidates.setdefault(entry.name, f"{section}.{entry.name}")
    if key in candidates:  # right name, wrong table
        return candidates[key]
    here = nearest(key, known, least=0.6)
    return candidates[(here or nearest(key, candidates))[0]]
