"""Values of another trainer's fields as settings have them: their types, and how a message shows them."""

import dataclasses
import types
import typing
from typing import Any

from refimpl.printable import one_line
from refimpl.run.config import Config


def setting_names() -> list[str]:
    """All settings of refimpl, by section and name."""
    return [
        f"{section}.{entry.name}"
        for section, kind in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(kind)
        for entry in dataclasses.fields(kind)
    ]


def kind_of_setting(setting: str) -> Any:
    """The type of a setting, by section and name; where it may be None too, the other one."""
    section, name = setting.split(".")
    kind = typing.get_type_hints(typing.get_type_hints(Config)[section])[name]
    if typing.get_origin(kind) is types.UnionType:
        return next(argument for argument in typing.get_args(kind) if argument is not type(None))
    return kind


def as_type(kind: Any, value: Any) -> Any:
    """The value as a field's type has it: numbers may come as strings. Raises ValueError or TypeError."""
    if kind in (int, float):
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
        if kind is int and not number.is_integer():
            raise ValueError
        return int(value if isinstance(value, int) else number) if kind is int else number
    if kind in (bool, str) and not isinstance(value, kind):
        raise TypeError
    return value


def short(value: Any) -> str:
    """A value from a file for a message: on one line, and cut where it is long."""
    return one_line(repr(value))
