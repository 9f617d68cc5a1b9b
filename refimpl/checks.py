"""Checks shared by the configuration dataclasses: each names the field, the value and what would be accepted."""

import difflib
import math
from collections.abc import Iterable

from refimpl.errors import InputError


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises InputError unless value is one of the choices; names the nearest."""
    known = list(choices)
    if value not in known:
        near = difflib.get_close_matches(value, known, 1, 0.0)
        raise InputError(f"{name} {value!r} is unknown; use {', '.join(known)} (the nearest is {near[0]!r})")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises InputError unless value is finite and ≥ least."""
    if not (value >= least and math.isfinite(value)):
        raise InputError(f"{name} {value} must be at least {least}")


def check_positive(name: str, value: float) -> None:
    """Raises InputError unless value is finite and > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} {value} must be positive and finite")


def check_fraction(name: str, value: float) -> None:
    """Raises InputError unless 0 ≤ value ≤ 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} {value} is outside 0 … 1")
