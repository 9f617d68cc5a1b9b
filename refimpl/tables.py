"""Nested tables (TOML, JSON) ↔ frozen dataclasses, with errors that name the nearest key."""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from refimpl.checks import check_integer
from refimpl.errors import InputError, Problem, WrongSettings, speaks_of
from refimpl.names import LIKE, nearest
from refimpl.printable import one_line

NUMBER = re.compile(r"\[\d+\]")  # of an entry of a list, in a setting's place
BEGIN = re.compile(
    r"(?:[\w ]+: |[\w.\[\]]+\.|\w+ )?(\w+)"
)  # of a message: a field, after what it is a field of
SLIP = 0.8  # similarity from which a name may be a slip for another, although it is the name of a third

T = TypeVar("T")


def from_table(cls: type[T], table: Any, source: str) -> T:
    """Builds a dataclass, with dataclasses in it, from nested dicts.

    source  the file the table came from, for messages
    Raises WrongSettings listing all that is wrong: unknown keys (each with the nearest), missing keys, values of the
    wrong type, and what the dataclasses refuse of values of the right type.
    """
    found = _Found([], [])
    built = _build(cls, cls, table, "", found)
    if found.problems:
        raise WrongSettings(source, found.problems, built, found.open_names)
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


class _Found(NamedTuple):
    """What is wrong with a table, as it is found."""

    problems: list[Problem]
    open_names: list[str]
    """settings whose value is not known, for which the default stands: what speaks of one is not said"""

    def add(self, text: str, is_whole: bool = False) -> None:
        self.problems.append(Problem(text, is_whole))

    def leave_open(self, *names: str) -> None:
        """Notes settings that are not known; those in a list also as they are spoken of all together."""
        self.open_names.extend(names)
        self.open_names.extend(NUMBER.sub("", name) for name in names if NUMBER.search(name))


def _build(root: type, cls: type, table: Any, where: str, found: _Found) -> Any:
    """The dataclass; where its table adds to the problems, one with defaults for those, unchecked, or None."""
    if not isinstance(table, dict):
        found.add(f"{where.rstrip('.') or 'all of it'} must be a table, not {table!r:.200}")
        return None
    before = len(found.problems)
    known = {entry.name: entry for entry in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in known:
            near, is_like = _nearest(root, key, known, where)
            if is_like:
                found.leave_open(*(name for name in near if name.removeprefix(where) not in table))
            found.add(f"unknown key {where}{one_line(key)}; did you mean {', or '.join(near)}?")
    values = {}
    for name, entry in known.items():
        if name in table:
            so_far = len(found.problems)
            value = _value(root, hints[name], table[name], f"{where}{name}", found)
            if len(found.problems) == so_far or _is_built(value):
                values[name] = value
            else:
                found.leave_open(f"{where}{name}")
        elif dataclasses.is_dataclass(hints[name]) and _is_required(entry):
            values[name] = _build(root, typing.cast(type, hints[name]), {}, f"{where}{name}.", found)
        elif _is_required(entry):
            found.add(f"{where}{name} is missing")
    if any(_is_required(entry) and name not in values for name, entry in known.items()):
        return None
    built = _checked(cls, values, where, found)  # first, as it knows the range of each
    if len(found.problems) == before:
        for name, value in values.items():
            if not _check_size(value, f"{where}{name}", found):
                found.leave_open(f"{where}{name}")
    return built


def _checked(cls: type, values: dict[str, Any], where: str, found: _Found) -> Any:
    """The dataclass of these values; where it refuses some, which add to the problems, one that is not checked.

    After a message that begins with a setting, that one has its default, so that the next that is wrong is found;
    there is no dataclass where it has none.
    """
    required = {entry.name for entry in dataclasses.fields(cls) if _is_required(entry)}
    left = dict(values)
    while True:
        try:
            return cls(**left)
        except WrongSettings as error:
            messages = [problem.text for problem in error.problems]
        except InputError as error:
            messages = [_placed(str(error), cls, where)]
        said = [text for text in messages if not speaks_of(text, _open_names(cls, where, found))]
        for text in said:
            found.add(text, is_whole=True)
        name = _field_of(messages[0].removeprefix(where[:-1] + ": "), cls)
        if not said or name not in left:
            return unchecked(cls, left)
        if name in required:
            return None
        found.leave_open(f"{where}{name}")
        del left[name]


def _is_built(value: Any) -> bool:
    """Whether a value is a dataclass, or a list of some, each of which could be built, if unchecked."""
    several = value if isinstance(value, tuple) and value else (value,)
    return all(dataclasses.is_dataclass(one) for one in several)


def _field_of(text: str, cls: type) -> str:
    """The field that a dataclass's message begins with, after its section, its class or a word; empty for none."""
    begin = BEGIN.match(text)
    return begin[1] if begin and any(entry.name == begin[1] for entry in dataclasses.fields(cls)) else ""


def _placed(text: str, cls: type, where: str) -> str:
    """A dataclass's message; in a list with its place there, which the dataclass does not know."""
    first, space, rest = text.partition(" ")
    if "[" not in where or first.startswith(where):
        return text
    return f"{where}{_field_of(text, cls)}{space}{rest}" if "." in first else f"{where[:-1]}: {text}"


def _open_names(cls: type, where: str, found: _Found) -> list[str]:
    """The settings that are not known; those of one table as its dataclass may name them, too."""
    here = [name.removeprefix(where) for name in found.open_names if where and name.startswith(where)]
    plain = [name for name in here if "_" in name]  # which is no everyday word
    return [*found.open_names, *plain, *(f"{cls.__name__}.{name}" for name in here)]


def unchecked(cls: type[T], values: dict[str, Any]) -> T:
    """A dataclass that has not looked at its values; those that are left out have their defaults."""
    built = object.__new__(cls)
    for entry in dataclasses.fields(typing.cast(Any, cls)):
        if entry.name in values or _is_required(entry):
            value = values[entry.name]
        elif entry.default is not dataclasses.MISSING:
            value = entry.default
        else:
            value = typing.cast(Any, entry.default_factory)()
        object.__setattr__(built, entry.name, value)
    return built


def _value(root: type, hint: Any, value: Any, where: str, found: _Found) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(root, typing.cast(type, hint), value, f"{where}.", found)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(root, next(a for a in arguments if a is not type(None)), value, where, found)
    if origin is tuple:
        return _tuple(root, arguments, value, where, found)
    if hint is float and type(value) is int:
        return float(value) if _check_size(value, where, found) else value
    if origin is typing.Literal:
        if value not in arguments:
            found.add(f"{where} {value!r:.200} is unknown; use {', '.join(map(str, arguments))}")
    elif type(value) is not hint:
        quoted = f'; write it in quotes: "{value}"' if hint is str and type(value) in (int, float) else ""
        found.add(f"{where} must be {hint.__name__}, not {value!r:.200}{quoted}")
    return value


def _tuple(root: type, kinds: tuple[Any, ...], value: Any, where: str, found: _Found) -> Any:
    if not isinstance(value, list | tuple):
        found.add(f"{where} must be a list, not {value!r:.200}")
        return value
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        found.add(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return value
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(root, kind, item, f"{where}[{i}]", found) for i, (kind, item) in enumerate(pairs))


def _check_size(value: Any, where: str, found: _Found) -> bool:
    """Whether a value is anything but an integer of more than 64 bits, which adds to the problems."""
    if type(value) is int:
        try:
            check_integer(where, value)
        except InputError as error:
            found.add(str(error))
            return False
    return True


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _nearest(root: type, key: str, known: dict[str, Any], where: str) -> tuple[list[str], bool]:
    """The keys that a wrong one may have been meant as, of this table or another, and whether any is like it."""
    candidates = {name: where + name for name in known}
    for section, kind in typing.get_type_hints(root).items():
        if dataclasses.is_dataclass(kind):
            for entry in dataclasses.fields(kind):
                candidates.setdefault(entry.name, f"{section}.{entry.name}")
    typed = nearest(key, known, least=SLIP)
    if key in candidates:  # the right name in the wrong table, unless it is a slip for another of this one
        return [*(where + name for name in typed), candidates[key]], True
    like = typed or _of_initials(key, known) or nearest(key, known, least=LIKE)
    like = like or _of_initials(key, candidates) or nearest(key, candidates, least=LIKE)
    return [candidates[(like or nearest(key, known))[0]]], bool(like)


def _of_initials(key: str, known: Iterable[str]) -> list[str]:
    """The names whose words begin with a key's letters, as those of learning_rate do with lr; the first alone."""
    return [name for name in known if "_" in name and "".join(w[:1] for w in name.split("_")) == key][:1]
