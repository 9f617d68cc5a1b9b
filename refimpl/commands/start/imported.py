"""Another trainer's settings as a file of ours, and what is said of every field of theirs."""

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refimpl.commands.start.first import estimate_options
from refimpl.commands.start.refused import in_their_words
from refimpl.commands.start.written import Written
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.here.machine import machine_problems
from refimpl.run.settings.paths import path_problems
from refimpl.run.settings.translated import Translation
from refimpl.tables import from_table, to_table
from refimpl.train.first.card import AUTO, planned_card, unseen_gpu
from refimpl.train.first.checkpoint import Start, look_at_checkpoint
from refimpl.train.first.images import look_at_images

WIDTH = 110  # columns


def imported(translation: Translation, source: Path, overridden: Callable[[Config], Config]) -> Written:
    """The settings of another trainer's file, and a report with every field of it.

    Raises InputError for settings that contradict one another.
    """
    start = _start(translation)
    _steps_of_epochs(translation)
    try:
        config = from_table(Config, _table(translation, start), str(source))
    except InputError as error:
        raise InputError(in_their_words(translation, str(error))) from error
    config = overridden(config)
    reasons = {setting: f"{translation.trainer}'s {name}" for setting, name in translation.origin.items()}
    reasons |= {
        setting: name for setting, name in translation.origin.items() if name not in translation.fields
    }
    problems = [*path_problems(config), *machine_problems(config)]
    summary = f"Translated from {source}, a configuration of {translation.trainer}."
    if translation.left:
        summary += f"\nNot carried over: {', '.join(translation.left)}."
    card = None if unseen_gpu() else planned_card(AUTO)
    options = estimate_options(config, card, AUTO)
    return Written(config, reasons, summary, [*_report(translation, source), *_to_do(problems)], options)


def _start(t: Translation) -> Start | None:
    """The checkpoint, whose networks' shapes are taken; SDXL's where it is not here."""
    path = t.settings.get("train.init_from", "")
    return look_at_checkpoint(path) if path and Path(path).exists() else None


def _table(t: Translation, start: Start | None) -> dict[str, Any]:
    table: dict[str, Any] = {name: dict(section) for name, section in t.table().items()}
    if start is not None:
        table["unet"] = to_table(start.unet)
        table["vae"] = {} if start.vae is None else to_table(start.vae)
        table["text"] = {"towers": start.towers, "vector": start.vector, **table.get("text", {})}
    return table


def _steps_of_epochs(t: Translation) -> None:
    """Epochs become steps where the images are here to be counted."""
    if t.epochs is None:
        return
    name, epochs = t.epochs
    folder = t.settings.get("data.folder", "")
    if not folder or not Path(folder).exists():
        t.left[name] = f"{epochs:g} epochs of images that are not here to be counted; set train.steps"
        return
    images = len(look_at_images(folder))
    step = t.settings.get("train.batch_size", 1) * t.settings.get("train.accumulate", 1)
    t.set(name, "train.steps", math.ceil(epochs * max(1, images // step)))


def _report(t: Translation, source: Path) -> list[str]:
    carried = t.carried()
    lines = [f"{source} is a configuration of {t.trainer}, with {len(t.fields)} fields"]
    lines += _block("carried over", {name: ", ".join(settings) for name, settings in carried.items()}, " → ")
    lines += _block("needs no setting", t.same)
    lines += _block("not carried over", t.left)
    lines += _block(
        "not its fields, left out", {name: f"the nearest is {near}" for name, near in t.unknown.items()}
    )
    if t.off:
        lines += [f"off or empty in it ({len(t.off)}):", *_wrapped(", ".join(t.off))]
    defaults = {setting: name for setting, name in t.origin.items() if name not in t.fields}
    lines += _block("where it says nothing, as it does by default", _values(t, defaults))
    return lines


def _values(t: Translation, defaults: Mapping[str, str]) -> dict[str, str]:
    return {f"{setting} = {t.settings[setting]}": name for setting, name in defaults.items()}


def _block(title: str, entries: Mapping[str, str], joint: str = ": ") -> list[str]:
    if not entries:
        return []
    lines = [line for name, text in entries.items() for line in _wrapped(f"{name}{joint}{text}")]
    return [f"{title} ({len(entries)}):", *lines]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_long_words=False)


def _to_do(problems: list[str]) -> list[str]:
    if not problems:
        return []
    return ["before it trains:", *(line for problem in problems for line in _wrapped(problem))]
