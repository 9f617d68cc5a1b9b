"""Another trainer's configuration on its way into settings: what is carried over and what is not, by field."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refimpl.errors import InputError
from refimpl.names import nearest
from refimpl.run.config import Config

NO_EQUIVALENT = "refimpl has no such setting"


@dataclass
class Translation:
    """A configuration of another trainer, and what has become of each of its fields."""

    trainer: str
    """The trainer's name."""
    fields: Mapping[str, Any]
    """Its fields, those in tables by their path."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of refimpl, by section and name: {"train.steps": 1000}."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where each setting comes from: the other trainer's field, or its default."""
    same: dict[str, str] = field(default_factory=dict)
    """Fields that need no setting, and why: refimpl does the same without being asked."""
    left: dict[str, str] = field(default_factory=dict)
    """Fields that could not be carried over, and why."""
    off: list[str] = field(default_factory=list)
    """Fields that are empty or switched off, so that there is nothing to carry over."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Fields that the other trainer does not have, and the nearest that it has."""
    epochs: tuple[str, float] | None = None
    """A length in epochs, with its field: the number of images decides the steps."""

    def set(self, name: str, setting: str, value: Any) -> None:
        """Carries a field over. A value of the wrong type is left, with the reason."""
        try:
            self.settings[setting] = _as_type(_kind(setting), value)
        except (TypeError, ValueError):
            self.left[name] = f"{value!r} makes no {setting}"
        else:
            before = self.origin.get(setting, name)
            if before != name and before in self.fields:
                self.same[before] = f"{name} overrides it"
            self.origin[setting] = name

    def assume(self, setting: str, value: Any, default_of: str) -> None:
        """Gives a setting the value that the other trainer takes where its configuration says nothing."""
        if setting not in self.settings:
            self.set(f"{self.trainer}'s default of {default_of}", setting, value)

    def has(self, name: str) -> bool:
        """Whether a field is there and neither empty nor switched off."""
        return not is_off(self.fields.get(name))

    def carried(self) -> dict[str, list[str]]:
        """The settings that each field of the configuration has become."""
        found: dict[str, list[str]] = {}
        for setting, name in self.origin.items():
            if name in self.fields:
                found.setdefault(name, []).append(f"{setting} = {self.settings[setting]}")
        return found

    def table(self) -> dict[str, dict[str, Any]]:
        """The settings as nested tables."""
        found: dict[str, dict[str, Any]] = {}
        for setting, value in self.settings.items():
            section, name = setting.split(".")
            found.setdefault(section, {})[name] = value
        return found


Rule = Callable[[Translation, str, Any], None]


def to(setting: str) -> Rule:
    """Carries the value over as it is."""
    return lambda translation, name, value: translation.set(name, setting, value)


def chosen(setting: str, values: Mapping[Any, Any], otherwise: str) -> Rule:
    """Carries over the values that have an equivalent; others are left, with the reason."""

    def rule(translation: Translation, name: str, value: Any) -> None:
        if isinstance(value, str | int | float) and value in values:
            translation.set(name, setting, values[value])
        else:
            translation.left[name] = f"{value!r}: {otherwise}"

    return rule


def same(why: str, values: tuple[Any, ...] = (), otherwise: str = "") -> Rule:
    """Says why nothing needs to be set; with `values`, for these alone, and other values are left."""

    def rule(translation: Translation, name: str, value: Any) -> None:
        if not values or value in values:
            translation.same[name] = why
        else:
            translation.left[name] = f"{value!r}: {otherwise}"

    return rule


def leave(why: str) -> Rule:
    """Leaves the field, with the reason, unless it is switched off."""

    def rule(translation: Translation, name: str, value: Any) -> None:
        if is_off(value):
            translation.off.append(name)
        else:
            translation.left[name] = why

    return rule


def later(translation: Translation, name: str, value: Any) -> None:
    """A field that means something only together with others, which are looked at after all rules."""


def translate(translation: Translation, rules: Mapping[str, Rule], known: frozenset[str]) -> None:
    """Goes through all fields: a rule takes each, or it is unknown.

    known  names of the other trainer's fields, beside those with rules
    """
    for name, value in translation.fields.items():
        plain = name.rsplit(".", 1)[-1]
        rule = rules.get(name)
        if rule is not None and value not in (None, "", [], {}):
            try:
                rule(translation, name, value)
            except (TypeError, ValueError):
                translation.left[name] = f"{value!r} makes no sense"
        elif rule is None and not known & {name, plain} and plain not in rules:
            translation.unknown[name] = nearest(plain, [*rules, *known])[0]


def settle(translation: Translation) -> None:
    """Whatever nothing has become of is off, or left: no field is dropped."""
    taken = {*translation.origin.values(), *translation.same, *translation.left, *translation.off}
    for name, value in translation.fields.items():
        is_length = translation.epochs is not None and name == translation.epochs[0]
        if name in taken or name in translation.unknown or is_length:
            continue
        if is_off(value):
            translation.off.append(name)
        else:
            translation.left[name] = NO_EQUIVALENT


def refuse_unknown(translation: Translation, source: str) -> None:
    """Raises InputError listing the fields that the other trainer does not have either, each with the nearest."""
    if translation.unknown:
        listing = "\n".join(f"  {name}; the nearest is {near}" for name, near in translation.unknown.items())
        raise InputError(
            f"{source}: {translation.trainer} has no such fields; correct them, or leave them out with "
            f"--skip-unknown\n{listing}"
        )


def is_off(value: Any) -> bool:
    """Whether a value is empty or switched off."""
    return (
        value is None or value is False or value in (0, "", [], {}) or str(value).upper() in ("NONE", "NEVER")
    )


def _kind(setting: str) -> Any:
    section, name = setting.split(".")
    return typing.get_type_hints(typing.get_type_hints(Config)[section])[name]


def _as_type(kind: Any, value: Any) -> Any:
    """The value as a field's type has it: numbers may come as strings. Raises ValueError or TypeError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        kind = next(argument for argument in arguments if argument is not type(None))
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if kind in (int, float):
        number = float(value)
        if kind is int and not number.is_integer():
            raise ValueError
        return int(number) if kind is int else number
    if kind is str:
        return str(value)
    return value


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested tables by their paths: {"a": {"b": 1}} → {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def setting_names() -> list[str]:
    """All settings of refimpl, by section and name."""
    return [
        f"{section}.{entry.name}"
        for section, kind in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(kind)
        for entry in dataclasses.fields(kind)
    ]
