"""Checks shared by the configuration dataclasses: each names the field, the value and what would be accepted."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from refimpl.errors import InputError
from refimpl.names import nearest

WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}  # of a setting, by its type
LARGEST_INTEGER = 2**63 - 1  # what torch, numpy and a file's header can hold
LARGEST_SIDE = 2**20  # largest dimension in a network; the bytes of its square still fit in 64 bits


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises InputError unless value is one of the choices; names the nearest."""
    known = list(choices)
    if not isinstance(value, str):
        raise InputError(f"{name} must be a str, not {value!r:.200}; use {', '.join(known)}")
    if value not in known:
        near = nearest(value, known)
        raise InputError(f"{name} {value!r} is unknown; use {', '.join(known)} (the nearest is {near[0]!r})")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises InputError unless value is finite and ≥ least."""
    check_integer(name, value)
    if not (value >= least and math.isfinite(value)):
        raise InputError(f"{name} {value} must be at least {least}")


def check_integer(name: str, value: float) -> None:
    """Raises InputError for an integer of more than 64 bits, which no float conversion survives."""
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise InputError(f"{name} is an integer of {value.bit_length()} bits; it must lie within ±(2^63 − 1)")


def check_at_most(name: str, value: float, most: float) -> None:
    """Raises InputError unless value is ≤ most."""
    if not value <= most:
        raise InputError(f"{name} {value} must be at most {most}")


def check_seed(name: str, value: int) -> None:
    """Raises InputError unless value is a seed that every generator accepts."""
    if not 0 <= value < 2**63:
        raise InputError(f"{name} {value} must lie in 0 … 2^63 − 1")


def check_positive(name: str, value: float) -> None:
    """Raises InputError unless value is finite and > 0."""
    check_integer(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} {value} must be positive and finite")


def check_fraction(name: str, value: float) -> None:
    """Raises InputError unless 0 ≤ value ≤ 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} {value} is outside 0 … 1")


def check_whole_numbers(config: Any, least: Mapping[str, int] | None = None) -> None:
    """Checks that every field is a whole number 1 … 2^20, or a non-empty tuple of them if its default is a tuple.

    config  a frozen dataclass; a list, the only sequence that TOML and JSON have, becomes a tuple in place
    least   other lower bounds, by field
    Raises InputError naming the class, the field and the value.
    """
    for field in fields(config):
        name, bound = f"{type(config).__name__}.{field.name}", (least or {}).get(field.name, 1)
        value = getattr(config, field.name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, field.name, value)
        several = isinstance(field.default, tuple)
        if several and not (isinstance(value, tuple) and value):
            raise InputError(f"{name} = {value!r}: needs a list of whole numbers ≥ {bound}, one per level")
        for number in value if several else (value,):
            if type(number) is not int or number < bound:  # True is an int, but not a number
                raise InputError(f"{name} = {value!r}: needs whole numbers ≥ {bound}")
            if number > LARGEST_SIDE:
                raise InputError(f"{name} = {value!r}: no network has a side above {LARGEST_SIDE}")
