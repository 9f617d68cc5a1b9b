"""Reading fields of diffusers' JSON files, with errors that name the file and the field."""

from collections.abc import Mapping
from typing import Any

from refimpl.errors import InputError

Table = Mapping[str, Any]
IS_SDXL = "this project knows SDXL and its refiner: give a folder of one of them"


def check_fixed(table: Table, fixed: Table, needed: Table, kind: str, source: str) -> None:
    """Raise InputError unless every field that affects diffusers' network has SDXL's value.

    fixed   fields that may be absent      needed  fields that must be present
    kind    the class whose fields these are
    """
    if table.get("_class_name", kind) != kind:
        raise InputError(
            f"{source}: _class_name {table['_class_name']!r:.80} is not SDXL's {kind}; {IS_SDXL}"
        )
    for name, value in {**fixed, **needed}.items():
        found = table.get(name, fixed.get(name))
        if found != value and not (value is None and found is False):
            raise InputError(
                f"{source}: {name} is {found!r:.80}; in SDXL's network it is {value!r}; {IS_SDXL}"
            )


def named(source: str, build: Any, **values: Any) -> Any:
    """build(**values); a message of its InputError is prefixed with the source."""
    try:
        return build(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def number(table: Table, name: str, source: str, default: int | None = None) -> int:
    """An integer field ≥ 1. Raises InputError naming the field."""
    value = table.get(name, default)
    if type(value) is not int or value < 1:
        raise InputError(f"{source}: {name} is {value!r:.80}; it must be a whole number ≥ 1")
    return value


def numbers(table: Table, name: str, source: str) -> list[int]:
    """A field that is a list of one or more integers ≥ 1. Raises InputError naming the field."""
    values = table.get(name)
    if not isinstance(values, list) or not values or any(type(n) is not int or n < 1 for n in values):
        raise InputError(f"{source}: {name} is {values!r:.80}; it must be a list of whole numbers ≥ 1")
    return values


def spread(table: Table, name: str, default: int, length: int, source: str) -> list[int]:
    """A field with one number for all levels, or a list with one for each. Raises InputError naming the field."""
    if not isinstance(table.get(name, default), list):
        return [number(table, name, source, default)] * length
    values = numbers(table, name, source)
    if len(values) != length:
        raise InputError(f"{source}: {name} has {len(values)} entries for {length} levels")
    return values


def strings(table: Table, name: str, length: int, source: str) -> list[str]:
    """A field that is a list of `length` strings. Raises InputError naming the field."""
    values = table.get(name)
    if not isinstance(values, list) or any(type(value) is not str for value in values):
        raise InputError(f"{source}: {name} is {values!r:.80}; it must be a list of block names")
    if len(values) != length:
        raise InputError(f"{source}: {name} has {len(values)} entries for {length} levels")
    return values
