"""Another trainer's configuration on its way into settings: what is carried over and what is not, by field."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refimpl.checks import WANTED
from refimpl.names import nearest
from refimpl.run.settings.typed import as_type, kind_of_setting, short

NO_EQUIVALENT = "refimpl has no such setting"
SWITCH = "neither on nor off"
CACHED = "encode once with `refimpl cache`, then name the folder with data.cache"


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
    wrong: dict[str, str] = field(default_factory=dict)
    """Fields whose value is of the wrong type, and what it should have been."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Fields that the other trainer does not have, and the nearest that it has."""
    epochs: tuple[str, float] | None = None
    """A length in epochs, with its field: the number of images decides the steps."""

    def set(self, name: str, setting: str, value: Any) -> None:
        """Carries a field over. A value of the wrong type is noted as such."""
        kind = kind_of_setting(setting)
        if value is False and kind in (int, float):
            self.off.append(name)
            return
        try:
            self.settings[setting] = as_type(kind, value)
        except (TypeError, ValueError, OverflowError):
            self.wrong[name] = f"{short(value)} is not {WANTED[kind]}"
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
    """Carries over the values that have an equivalent; others of their type are left, with the reason."""
    kinds = tuple(dict.fromkeys(type(known) for known in values))

    def rule(translation: Translation, name: str, value: Any) -> None:
        if isinstance(value, str | int | float) and value in values:
            translation.set(name, setting, values[value])
        elif isinstance(value, kinds):
            translation.left[name] = f"{value!r}: {otherwise}"
        elif is_off(value):
            translation.off.append(name)
        else:
            translation.wrong[name] = f"{short(value)} is not {' or '.join(WANTED[kind] for kind in kinds)}"

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


def length_in_epochs(translation: Translation, name: str, value: Any) -> None:
    """A length in epochs, which waits for the number of images. Raises TypeError or ValueError for no number."""
    number = as_type(float, value)
    if math.isfinite(number) and number > 0:
        translation.epochs = (name, number)
    else:
        translation.wrong[name] = f"{short(value)} is not a number above 0"


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
            except (TypeError, ValueError, OverflowError, LookupError):
                translation.wrong[name] = f"{short(value)} is of the wrong type"
        elif rule is None and not known & {name, plain} and plain not in rules:
            translation.unknown[name] = nearest(plain, [*rules, *known])[0]


def settle(translation: Translation) -> None:
    """Whatever nothing has become of is off, or left: no field is dropped."""
    taken = {
        *translation.origin.values(), *translation.same, *translation.left, *translation.off, *translation.wrong,
    }  # fmt: skip
    for name, value in translation.fields.items():
        is_length = translation.epochs is not None and name == translation.epochs[0]
        if name in taken or name in translation.unknown or is_length:
            continue
        if is_off(value):
            translation.off.append(name)
        else:
            translation.left[name] = NO_EQUIVALENT


def is_off(value: Any) -> bool:
    """Whether a value is empty or switched off."""
    return (
        value is None or value is False or value in (0, "", [], {}) or str(value).upper() in ("NONE", "NEVER")
    )


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested tables by their paths: {"a": {"b": 1}} → {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
