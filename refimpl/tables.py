"""Nested tables (TOML, JSON) ↔ frozen dataclasses, with errors that name the nearest key."""

import dataclasses
import json
import types
import typing
from typing import Any, NamedTuple, TypeVar

from refimpl.checks import check_integer
from refimpl.errors import InputError
from refimpl.names import LIKE, nearest
from refimpl.printable import one_line

SLIP = 0.8  # similarity from which a name may be a slip for another, although it is the name of a third

T = TypeVar("T")


def from_table(cls: type[T], table: Any, source: str) -> T:
    """Builds a dataclass, with dataclasses in it, from nested dicts.

    source  the file the table came from, for messages
    Raises InputError listing everything that is wrong: unknown keys (each with the nearest), missing keys, values of
    the wrong type, and what the dataclasses refuse of values of the right type.
    """
    problems: list[Problem] = []
    built = _build(cls, cls, table, "", problems)
    if len(problems) == 1:
        (only,) = problems
        raise InputError(only.text if only.is_whole else f"{source}: {only.text}")
    if problems:
        listing = "\n".join(f"  {problem.text}" for problem in problems)
        raise InputError(f"{source}: {len(problems)} settings are wrong\n{listing}")
    return built


def parsed_json(text: str | bytes) -> Any:
    """JSON as Python's values. Raises ValueError for anything else, and for what is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def to_table(value: Any) -> dict[str, Any]:
    """The dataclass as plain JSON values, from which `from_table` builds an equal one."""
    return json.loads(json.dumps(dataclasses.asdict(value), allow_nan=False))


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested tables, and tables in lists, as one table with dotted keys."""
    values: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


class Problem(NamedTuple):
    """Something that is wrong with a table."""

    text: str
    """What is wrong, and where in the table."""
    is_whole: bool = False
    """Whether the message of a dataclass, which needs no source before it."""


def _build(root: type, cls: type, table: Any, where: str, problems: list[Problem]) -> Any:
    """The dataclass, or None where its table adds to the problems."""
    if not isinstance(table, dict):
        problems.append(Problem(f"{where.rstrip('.') or 'all of it'} must be a table, not {table!r:.200}"))
        return None
    before = len(problems)
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    open_names = []  # settings whose value is not known
    for key in table:
        if key not in known:
            near = _nearest(root, key, known, where)
            open_names.append(near)
            problems.append(Problem(f"unknown key {where}{one_line(key)}; did you mean {near}?"))
    values = {}
    for name, entry in known.items():
        if name in table:
            so_far = len(problems)
            value = _value(root, hints[name], table[name], f"{where}{name}", problems)
            if len(problems) == so_far:
                values[name] = value
            else:
                open_names.append(f"{where}{name}")
        elif dataclasses.is_dataclass(hints[name]) and _is_required(entry):
            values[name] = _build(root, typing.cast(type, hints[name]), {}, f"{where}{name}.", problems)
        elif _is_required(entry):
            problems.append(Problem(f"{where}{name} is missing"))
    has_sections = any(dataclasses.is_dataclass(hint) for hint in hints.values())
    lacks = any(_is_required(entry) and name not in values for name, entry in known.items())
    if len(problems) > before and (has_sections or lacks):
        return None
    built = _checked(cls, values, where, open_names, problems)  # first, as it knows the range of each
    if built is None or len(problems) > before:
        return None
    for name, value in values.items():
        _check_size(value, f"{where}{name}", problems)
    return built


def _checked(
    cls: type, values: dict[str, Any], where: str, open_names: list[str], problems: list[Problem]
) -> Any:
    """The dataclass of these values; None where it refuses some, which add to the problems.

    open_names  settings whose value is not known, for which the default stands: what speaks of one is not said
    After a message that begins with a setting, that one has its default too, so that the next that is wrong is found.
    """
    required = {entry.name for entry in dataclasses.fields(cls) if _is_required(entry)}
    unknown, left = list(open_names), dict(values)
    while True:
        try:
            built = cls(**left)
        except InputError as error:
            message = str(error)
        else:
            return built if len(left) == len(values) else None
        if any(name in message for name in unknown):
            return None
        problems.append(Problem(message, is_whole=True))
        name = next((name for name in left if message.startswith(f"{where}{name} ")), None)
        if name is None or name in required:
            return None
        unknown.append(f"{where}{name}")
        del left[name]


def _value(root: type, hint: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(root, typing.cast(type, hint), value, f"{where}.", problems)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(root, next(a for a in arguments if a is not type(None)), value, where, problems)
    if origin is tuple:
        return _tuple(root, arguments, value, where, problems)
    if hint is float and type(value) is int:
        return float(value) if _check_size(value, where, problems) else value
    if origin is typing.Literal:
        if value not in arguments:
            problems.append(
                Problem(f"{where} {value!r:.200} is unknown; use {', '.join(map(str, arguments))}")
            )
    elif type(value) is not hint:
        quoted = f'; write it in quotes: "{value}"' if hint is str and type(value) in (int, float) else ""
        problems.append(Problem(f"{where} must be {hint.__name__}, not {value!r:.200}{quoted}"))
    return value


def _tuple(root: type, kinds: tuple[Any, ...], value: Any, where: str, problems: list[Problem]) -> Any:
    if not isinstance(value, list | tuple):
        problems.append(Problem(f"{where} must be a list, not {value!r:.200}"))
        return value
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        problems.append(Problem(f"{where} must have {len(kinds)} entries, not {len(value)}"))
        return value
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(root, kind, item, f"{where}[{i}]", problems) for i, (kind, item) in enumerate(pairs))


def _check_size(value: Any, where: str, problems: list[Problem]) -> bool:
    """Whether a value is anything but an integer of more than 64 bits, which adds to the problems."""
    if type(value) is int:
        try:
            check_integer(where, value)
        except InputError as error:
            problems.append(Problem(str(error)))
            return False
    return True


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _nearest(root: type, key: str, known: dict[str, Any], where: str) -> str:
    """The most similar key of this table, or of any table when nothing here is as similar."""
    candidates = {name: where + name for name in known}
    for section, kind in typing.get_type_hints(root).items():
        if dataclasses.is_dataclass(kind):
            for entry in dataclasses.fields(kind):
                candidates.setdefault(entry.name, f"{section}.{entry.name}")
    typed = nearest(key, known, least=SLIP)
    if key in candidates:  # the right name in the wrong table, unless it is a slip for another of this one
        return ", or ".join([*(where + name for name in typed), candidates[key]])
    here = typed or nearest(key, known, least=LIKE)
    return candidates[(here or nearest(key, candidates))[0]]
