"""What is said of another trainer's fields that are wrong."""

import re

from refimpl.errors import InputError
from refimpl.run.settings.translated import Translation
from refimpl.run.settings.typed import short


def refuse_fields(translation: Translation, source: str, skip_unknown: bool) -> None:
    """Raises InputError listing the values of the wrong type, and the fields that the other trainer does not have.

    skip_unknown  whether the latter may be there
    """
    found: list[str] = []
    if translation.wrong:
        found += [f"{source}: values of the wrong type; correct them, or delete their lines"]
        found += [f"  {name}: {why}" for name, why in translation.wrong.items()]
    if translation.unknown and not skip_unknown:
        found.append(
            f"{source}: {translation.trainer} has no such fields; correct them, or leave them out with --skip-unknown"
        )
        found += [f"  {name}; the nearest is {near}" for name, near in translation.unknown.items()]
    if found:
        raise InputError("\n".join(found))


def in_their_words(translation: Translation, message: str) -> str:
    """A message about settings, with the fields of the other trainer that they come from."""
    told = [
        f"  {setting} comes from {name} = {short(translation.fields[name])}"
        for setting, name in translation.origin.items()
        if name in translation.fields and _is_named(setting, message)
    ]
    return "\n".join([message, *told])


def _is_named(setting: str, message: str) -> bool:
    """Whether a message names a setting, whole or, where that is no everyday word, without its section."""
    name = setting.rpartition(".")[2]
    alone = rf"|(?<![\w.]){name}\b" if "_" in name else ""
    return re.search(rf"\b{re.escape(setting)}\b{alone}", message) is not None
