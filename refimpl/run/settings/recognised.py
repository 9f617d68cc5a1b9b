"""Whose configuration a file is: refimpl's own, kohya's sd-scripts' or OneTrainer's."""

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.run.settings.kohya import KOHYA, from_kohya
from refimpl.run.settings.kohya_fields import MARKERS as KOHYAS
from refimpl.run.settings.kohya_fields import TELLING as KOHYAS_ALONE
from refimpl.run.settings.onetrainer import ONETRAINER, from_onetrainer
from refimpl.run.settings.onetrainer_fields import MARKERS as ONETRAINERS
from refimpl.run.settings.onetrainer_fields import TELLING as ONETRAINERS_ALONE
from refimpl.run.settings.translated import Translation
from refimpl.run.settings.typed import setting_names
from refimpl.tables import parsed_json

LEAST = 2  # fields of another trainer that tell its configuration, where none of them is its alone
TRANSLATORS: dict[str, Callable[[Mapping[str, Any], str], Translation]] = {
    KOHYA: from_kohya,
    ONETRAINER: from_onetrainer,
}


def trainer_of(table: Mapping[str, Any]) -> str | None:
    """The other trainer whose configuration this is; None where it has too few of any one's fields.

    One field that a trainer alone has is enough, unless settings of refimpl are there too, or sections of it alone,
    among which it is a slip.
    """
    names = {
        *table,
        *(name for section in table.values() if isinstance(section, Mapping) for name in section),
    }
    if isinstance(table.get("datasets"), list):
        return KOHYA
    for trainer, markers in ((ONETRAINER, ONETRAINERS), (KOHYA, KOHYAS)):
        if len(names & markers) >= LEAST:
            return trainer
    own = {setting.partition(".")[0] for setting in setting_names()}
    if table and set(table) <= own and all(isinstance(section, Mapping) for section in table.values()):
        return None
    if {
        f"{section}.{name}"
        for section, fields in table.items()
        if isinstance(fields, Mapping)
        for name in fields
    } & {*setting_names()}:
        return None
    for trainer, alone in ((ONETRAINER, ONETRAINERS_ALONE), (KOHYA, KOHYAS_ALONE)):
        if names & alone:
            return trainer
    return None


def refuse_foreign(table: Mapping[str, Any], source: str) -> None:
    """Raises InputError for another trainer's configuration, naming the command that translates it."""
    trainer = trainer_of(table)
    if trainer is not None:
        raise InputError(
            f"{source} is a configuration of {trainer}, not of refimpl; translate it with `refimpl init --import "
            f"{source}`"
        )


def read_foreign(path: Path) -> Translation:
    """Another trainer's configuration, translated. Raises InputError for a file that is none, naming what it is."""
    table = read_table(path)
    trainer = trainer_of(table)
    if trainer is None:
        own = "; it seems to be refimpl's own" if {"train", "data"} & set(table) else ""
        own = own or ("" if table else "; it holds no settings at all")
        raise InputError(
            f"--import {path}: neither a TOML file of sd-scripts nor a JSON file of OneTrainer{own}"
        )
    return TRANSLATORS[trainer](table, str(path.parent))


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file, or a JSON file where its name says so, as a table. Raises InputError for anything else."""
    is_json = path.suffix.lower() == ".json"
    if (
        os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    ):  # a pipe would be waited for
        raise InputError(f"{path} is not a regular file; give a TOML or JSON file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = parsed_json(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # a ValueError also for an integer of thousands of digits
        advice = "give a TOML or JSON file"
        if problem := named_kind(path, "a file of settings", advice):
            raise InputError(problem) from error
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{path} is not text; {advice}") from error
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is not valid {'JSON' if is_json else 'TOML'}: {reason}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} holds no table of settings")
    return table
